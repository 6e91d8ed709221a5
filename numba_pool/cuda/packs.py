"""How a CUDA thread reaches memory: 16 bytes at a time, whatever the type of an element.

A kernel works on *packs*: tuples of one to eight elements that sit side by side, already in the type in which they
are summed (float64 for float64, float32 for the three others).
:func:`pack_of` makes the operations on packs of one type and width: `load`, `store`, `get`, `put`, `zero`, `add` and
`divide`.
The kernels are written with these seven words, so one text serves every type and every width.

Global memory is named by an address, an integer: a pointer is all that a kernel needs of a tensor, and an integer is
the cheapest argument of a launch.
In Numba's simulator, which has no pointers, a NumPy array stands in its place.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from .jit import SIMULATED, intrinsic
from .limits import ITEMSIZE, PACK_BYTES, sum_dtype

# How sums lie in shared memory, so that packs of 16 bytes can be read; the simulator's memory is not aligned.
ALIGNMENT = None if SIMULATED else PACK_BYTES


class Pack(NamedTuple):
    """The operations on packs of `width` elements.

    An index counts elements, and is a multiple of `width` counted from an address that is a multiple of 16 bytes.

    Attributes
    ----------
    width : int
        Elements of a pack.
    load : device function
        ``load(address, index)`` reads a pack from global memory.
    store : device function
        ``store(address, index, pack)`` rounds the elements of a pack to their type and writes them to global memory.
    get, put : device function
        ``get(array, index)`` and ``put(array, index, pack)`` do the same with an array of sums in shared memory.
    zero, add, divide : device function
        ``zero()`` is the empty sum; ``add(a, b)`` and ``divide(pack, number)`` work element by element.
    """

    width: int
    load: Any
    store: Any
    get: Any
    put: Any
    zero: Any
    add: Any
    divide: Any


@cache
def pack_of(dtype, width):
    """Return the operations on packs of `width` elements of `dtype`.

    Parameters
    ----------
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Type of the elements in global memory.
    width : int
        Elements of a pack: 1, or as many as fill 16 bytes.

    Returns
    -------
    Pack
    """
    if SIMULATED:
        return _simulated_pack(dtype, width)
    layout = _Layout(dtype, width)
    return Pack(width, *_global_memory(layout), *_shared_memory(layout), *_arithmetic(layout))


def sum_type_of(dtype):
    """Return Numba's type of the sums of elements of `dtype`."""
    return getattr(types, sum_dtype(dtype))


# --- the hardware: one instruction for a pack --------------------------------------------------------------------

_DOUBLE, _SINGLE, _HALF = ir.DoubleType(), ir.FloatType(), ir.HalfType()
_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


class _Layout:
    """How packs of one type and width look to LLVM: in a kernel's tuples, in global and in shared memory."""

    def __init__(self, dtype, width):
        self.dtype, self.width, self.itemsize = dtype, width, ITEMSIZE[dtype]
        self.is_half = self.itemsize == 2
        self.sum_type = sum_type_of(dtype)
        self.pack_type = types.UniTuple(self.sum_type, width)
        self.sum = _DOUBLE if dtype == "float64" else _SINGLE
        self.sums = ir.VectorType(self.sum, width) if width > 1 else self.sum
        # What one instruction moves: the elements themselves, or the halves two by two in 32-bit words.
        self.moved = self.sums
        if self.is_half:
            self.moved = ir.VectorType(_INT32, width // 2) if width > 1 else _INT16

    def values(self, builder, pack):
        """Return the elements of a tuple."""
        return [builder.extract_value(pack, k) for k in range(self.width)]

    def pack(self, context, builder, values):
        """Return a tuple of elements."""
        return context.make_tuple(builder, self.pack_type, values)

    def unpack(self, builder, moved):
        """Return the elements of what was loaded from global memory."""
        if not self.is_half:
            return split(builder, moved)
        if self.width == 1:
            return [self._widen(builder, moved)]
        return [
            self._widen(builder, builder.trunc(builder.lshr(word, _INT32(shift)), _INT16))
            for word in split(builder, moved)
            for shift in (0, 16)
        ]

    def repack(self, builder, values):
        """Return what to store to global memory for some elements."""
        if not self.is_half:
            return join(builder, values)
        if self.width == 1:
            return self._narrow(builder, values[0])
        pairs = zip(values[::2], values[1::2], strict=True)
        return join(builder, [self._narrow_pair(builder, low, high) for low, high in pairs])

    def _widen(self, builder, bits):
        if self.dtype == "float16":
            return builder.fpext(builder.bitcast(bits, _HALF), _SINGLE)
        return builder.bitcast(builder.shl(builder.zext(bits, _INT32), _INT32(16)), _SINGLE)

    def _narrow(self, builder, value):
        if self.dtype == "float16":
            return builder.bitcast(builder.fptrunc(value, _HALF), _INT16)
        # Devices of compute capability 8.0 and later round to bfloat16 in one instruction.
        convert = ir.InlineAsm(ir.FunctionType(_INT16, [_SINGLE]), "cvt.rn.bf16.f32 $0, $1;", "=h,f")
        return builder.call(convert, [value])

    def _narrow_pair(self, builder, low, high):
        if self.dtype == "float16":
            low, high = (builder.zext(self._narrow(builder, value), _INT32) for value in (low, high))
            return builder.or_(low, builder.shl(high, _INT32(16)))
        kind = ir.FunctionType(_INT32, [_SINGLE, _SINGLE])
        convert = ir.InlineAsm(kind, "cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f")
        return builder.call(convert, [high, low])


def split(builder, value):
    """Return the elements of a vector, or the one that a scalar is."""
    if not isinstance(value.type, ir.VectorType):
        return [value]
    return [builder.extract_element(value, _INT32(k)) for k in range(value.type.count)]


def join(builder, values):
    """Return a vector of some elements, or the one element there is."""
    if len(values) == 1:
        return values[0]
    vector = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
    for k, value in enumerate(values):
        vector = builder.insert_element(vector, value, _INT32(k))
    return vector


def _global_memory(layout):
    """Return `load` and `store`."""
    alignment = layout.itemsize * layout.width

    def pointer(context, builder, signature, args):
        index = context.cast(builder, args[1], signature.args[1], types.int64)
        byte = builder.add(args[0], builder.mul(index, _INT64(layout.itemsize)))
        return builder.inttoptr(byte, ir.PointerType(layout.moved, addrspace=1))

    @intrinsic
    def load(typingctx, address, index):
        def codegen(context, builder, signature, args):
            moved = builder.load(pointer(context, builder, signature, args), align=alignment)
            return layout.pack(context, builder, layout.unpack(builder, moved))

        return layout.pack_type(address, index), codegen

    @intrinsic
    def store(typingctx, address, index, pack):
        def codegen(context, builder, signature, args):
            moved = layout.repack(builder, layout.values(builder, args[2]))
            builder.store(moved, pointer(context, builder, signature, args), align=alignment)
            return context.get_dummy_value()

        return types.void(address, index, pack), codegen

    return load, store


def _shared_memory(layout):
    """Return `get` and `put`."""
    # Sums are wider than halves: eight of them are two 16-byte accesses.
    alignment = min(PACK_BYTES, layout.width * ITEMSIZE[sum_dtype(layout.dtype)])

    def pointer(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        index = context.cast(builder, args[1], signature.args[1], types.int64)
        return builder.bitcast(builder.gep(array.data, [index]), ir.PointerType(layout.sums))

    @intrinsic
    def get(typingctx, array, index):
        def codegen(context, builder, signature, args):
            sums = builder.load(pointer(context, builder, signature, args), align=alignment)
            return layout.pack(context, builder, split(builder, sums))

        return layout.pack_type(array, index), codegen

    @intrinsic
    def put(typingctx, array, index, pack):
        def codegen(context, builder, signature, args):
            sums = join(builder, layout.values(builder, args[2]))
            builder.store(sums, pointer(context, builder, signature, args), align=alignment)
            return context.get_dummy_value()

        return types.void(array, index, pack), codegen

    return get, put


def _arithmetic(layout):
    """Return `zero`, `add` and `divide`."""

    @intrinsic
    def zero(typingctx):
        def codegen(context, builder, signature, args):
            return layout.pack(context, builder, [ir.Constant(layout.sum, 0.0)] * layout.width)

        return layout.pack_type(), codegen

    @intrinsic
    def add(typingctx, a, b):
        def codegen(context, builder, signature, args):
            pairs = zip(*(layout.values(builder, pack) for pack in args), strict=True)
            return layout.pack(context, builder, [builder.fadd(x, y) for x, y in pairs])

        return layout.pack_type(a, b), codegen

    @intrinsic
    def divide(typingctx, pack, number):
        def codegen(context, builder, signature, args):
            divisor = context.cast(builder, args[1], signature.args[1], layout.sum_type)
            return layout.pack(context, builder, [builder.fdiv(x, divisor) for x in layout.values(builder, args[0])])

        return layout.pack_type(pack, number), codegen

    return zero, add, divide


# --- the simulator: element by element, in NumPy -----------------------------------------------------------------


def _simulated_pack(dtype, width):
    sum_type = getattr(np, sum_dtype(dtype))
    read, write = {
        "float16": (lambda bits: sum_type(bits.view(np.float16)), lambda value: np.float16(value).view(np.int16)),
        "bfloat16": (lambda bits: (np.uint32(bits) << np.uint32(16)).view(sum_type), _bfloat16_bits),
    }.get(dtype, (sum_type, sum_type))

    def load(address, index):
        return tuple(read(address[index + k]) for k in range(width))

    def store(address, index, pack):
        for k in range(width):
            address[index + k] = write(pack[k])

    def get(array, index):
        return tuple(array[index + k] for k in range(width))

    def put(array, index, pack):
        for k in range(width):
            array[index + k] = pack[k]

    def zero():
        return (sum_type(0),) * width

    def add(a, b):
        return tuple(x + y for x, y in zip(a, b, strict=True))

    def divide(pack, number):
        return tuple(x / sum_type(number) for x in pack)

    return Pack(width, load, store, get, put, zero, add, divide)


def _bfloat16_bits(value):
    """Round a float32 to the 16 bits of a bfloat16, to nearest even, as the hardware does."""
    bits = np.float32(value).view(np.uint32)
    if np.isnan(value):
        return np.uint16(0x7FFF)
    return np.uint16((int(bits) + 0x7FFF + ((int(bits) >> 16) & 1)) >> 16)
