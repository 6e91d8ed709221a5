"""How a CUDA thread reaches memory: 16 bytes at a time, whatever the type of an element.

A kernel works on *packs*: tuples of one to eight elements that sit side by side, already in the type in which they
are summed (float64 for float64, float32 for the three others).
:func:`pack_of` makes the operations on packs of one type and width: `load`, `store`, `get`, `put`, `zero`, `add` and
`divide`.
The kernels are written with these seven words, so one text serves every type and every width.

Global memory is named by an address, an integer: a pointer is all that a kernel needs of a tensor, and an integer is
the cheapest argument of a launch.
In Numba's simulator, which knows no pointers, a NumPy array stands in its place.
"""

from collections import namedtuple
from functools import cache

import numpy as np
from numba import cuda, types
from numba.core import config

try:
    from numba.cuda.extending import intrinsic
except ImportError:  # before numba-cuda had its own, Numba's served
    from numba.extending import intrinsic

SIMULATED = bool(config.ENABLE_CUDASIM)
PACK_BYTES = 16

Type = namedtuple("Type", "itemsize sum carrier")
Type.__doc__ = "What the kernels know of an element: its bytes, the type of its sums, the NumPy type that carries it."

TYPES = {
    "float64": Type(8, np.float64, np.float64),
    "float32": Type(4, np.float32, np.float32),
    "float16": Type(2, np.float32, np.int16),
    "bfloat16": Type(2, np.float32, np.uint16),
}

Pack = namedtuple("Pack", "width load store get put zero add divide")
Pack.__doc__ = "The operations on packs of `width` elements."


def device_function(function):
    """Let kernels call `function`; in the simulator it stays the Python function that it is.

    Numba copies it into every kernel that calls it, so kernels compile to PTX on machines without a GPU too.
    """
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


def _quotient():
    if SIMULATED:
        return lambda a, b: np.int32(a // b)

    @intrinsic
    def quotient(typingctx, a, b):
        def codegen(context, builder, signature, args):
            pairs = zip(args, signature.args, strict=True)
            return builder.udiv(*(context.cast(builder, arg, kind, types.int32) for arg, kind in pairs))

        return types.int32(a, b), codegen

    return quotient


# ``a // b`` for numbers from 0 to 2**31 - 1: half as many instructions as the division of 64-bit integers.
quotient = _quotient()


def full_width(dtype):
    """Return how many elements of `dtype` fill 16 bytes: the widest load that a thread can issue."""
    return PACK_BYTES // TYPES[dtype].itemsize


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
        ``load(address, index)`` reads a pack from global memory, ``store(address, index, pack)`` rounds one to `dtype`
        and writes it; ``get(array, index)`` and ``put(array, index, pack)`` do the same with an array of sums in shared
        memory; ``zero()`` is the empty sum; ``add(a, b)`` and ``divide(pack, number)`` work element by element.
        An index counts elements, and is a multiple of `width` counted from an address that is a multiple of 16 bytes.
    """
    return (_simulated_pack if SIMULATED else _compiled_pack)(dtype, width)


# --- the simulator: element by element, in NumPy -----------------------------------------------------------------


def bfloat16_bits(value):
    """Round a float32 to the 16 bits of a bfloat16, to nearest even, as the hardware does."""
    bits = np.float32(value).view(np.uint32)
    if np.isnan(value):
        return np.uint16(0x7FFF)
    return np.uint16((int(bits) + 0x7FFF + ((int(bits) >> 16) & 1)) >> 16)


def _simulated_pack(dtype, width):
    total = TYPES[dtype].sum
    read, write = {
        "float16": (lambda bits: total(bits.view(np.float16)), lambda value: np.float16(value).view(np.int16)),
        "bfloat16": (lambda bits: (np.uint32(bits) << np.uint32(16)).view(total), bfloat16_bits),
    }.get(dtype, (total, total))

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
        return (total(0),) * width

    def add(a, b):
        return tuple(x + y for x, y in zip(a, b, strict=True))

    def divide(pack, number):
        return tuple(x / total(number) for x in pack)

    return Pack(width, load, store, get, put, zero, add, divide)


# --- the hardware: one instruction for a pack --------------------------------------------------------------------


def _compiled_pack(dtype, width):
    from llvmlite import ir

    double, single, half, word, short = ir.DoubleType(), ir.FloatType(), ir.HalfType(), ir.IntType(32), ir.IntType(16)
    itemsize = TYPES[dtype].itemsize
    sum_type = types.float64 if dtype == "float64" else types.float32
    sum_ir = double if dtype == "float64" else single
    pack_type = types.UniTuple(sum_type, width)
    # What one instruction moves: the elements themselves, or the halves two by two in 32-bit words.
    if itemsize == 2:
        moved = ir.VectorType(word, width // 2) if width > 1 else short
    else:
        moved = ir.VectorType(sum_ir, width) if width > 1 else sum_ir

    def widen_half(builder, bits):
        if dtype == "float16":
            return builder.fpext(builder.bitcast(bits, half), single)
        return builder.bitcast(builder.shl(builder.zext(bits, word), word(16)), single)

    def narrow_half(builder, value):
        if dtype == "float16":
            return builder.bitcast(builder.fptrunc(value, half), short)
        # Devices of compute capability 8.0 and later round to bfloat16 in one instruction.
        convert = ir.InlineAsm(ir.FunctionType(short, [single]), "cvt.rn.bf16.f32 $0, $1;", "=h,f")
        return builder.call(convert, [value])

    def unpack(builder, value):
        if width == 1:
            return [widen_half(builder, value) if itemsize == 2 else value]
        parts = [builder.extract_element(value, word(k)) for k in range(moved.count)]
        if itemsize == 2:
            halves = [builder.trunc(builder.lshr(part, word(s)), short) for part in parts for s in (0, 16)]
            return [widen_half(builder, bits) for bits in halves]
        return parts

    def narrow_pair(builder, low, high):
        if dtype == "float16":
            low, high = (builder.zext(narrow_half(builder, value), word) for value in (low, high))
            return builder.or_(low, builder.shl(high, word(16)))
        convert = ir.InlineAsm(ir.FunctionType(word, [single, single]), "cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f")
        return builder.call(convert, [high, low])

    def repack(builder, values):
        if itemsize == 2:
            if width == 1:
                values = [narrow_half(builder, values[0])]
            else:
                pairs = zip(values[::2], values[1::2], strict=True)
                values = [narrow_pair(builder, low, high) for low, high in pairs]
        if width == 1:
            return values[0]
        vector = ir.Constant(moved, ir.Undefined)
        for k, value in enumerate(values):
            vector = builder.insert_element(vector, value, word(k))
        return vector

    def elements(builder, pack):
        return [builder.extract_value(pack, k) for k in range(width)]

    def as_pack(context, builder, values):
        return context.make_tuple(builder, pack_type, values)

    def global_pointer(context, builder, signature, args):
        index = context.cast(builder, args[1], signature.args[1], types.int64)
        byte = builder.add(args[0], builder.mul(index, ir.IntType(64)(itemsize)))
        return builder.inttoptr(byte, ir.PointerType(moved, addrspace=1))

    def shared_pointer(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        index = context.cast(builder, args[1], signature.args[1], types.int64)
        pointer = builder.gep(array.data, [index])
        return builder.bitcast(pointer, ir.PointerType(ir.VectorType(sum_ir, width) if width > 1 else sum_ir))

    @intrinsic
    def load(typingctx, address, index):
        def codegen(context, builder, signature, args):
            value = builder.load(global_pointer(context, builder, signature, args), align=itemsize * width)
            return as_pack(context, builder, unpack(builder, value))

        return pack_type(address, index), codegen

    @intrinsic
    def store(typingctx, address, index, pack):
        def codegen(context, builder, signature, args):
            pointer = global_pointer(context, builder, signature, args)
            builder.store(repack(builder, elements(builder, args[2])), pointer, align=itemsize * width)
            return context.get_dummy_value()

        return types.void(address, index, pack), codegen

    # Sums are wider than halves: eight of them are two 16-byte accesses.
    alignment = min(PACK_BYTES, width * (8 if dtype == "float64" else 4))

    @intrinsic
    def get(typingctx, array, index):
        def codegen(context, builder, signature, args):
            value = builder.load(shared_pointer(context, builder, signature, args), align=alignment)
            values = [builder.extract_element(value, word(k)) for k in range(width)] if width > 1 else [value]
            return as_pack(context, builder, values)

        return pack_type(array, index), codegen

    @intrinsic
    def put(typingctx, array, index, pack):
        def codegen(context, builder, signature, args):
            values = elements(builder, args[2])
            value = values[0]
            if width > 1:
                value = ir.Constant(ir.VectorType(sum_ir, width), ir.Undefined)
                for k, element in enumerate(values):
                    value = builder.insert_element(value, element, word(k))
            builder.store(value, shared_pointer(context, builder, signature, args), align=alignment)
            return context.get_dummy_value()

        return types.void(array, index, pack), codegen

    @intrinsic
    def zero(typingctx):
        def codegen(context, builder, signature, args):
            return as_pack(context, builder, [ir.Constant(sum_ir, 0.0)] * width)

        return pack_type(), codegen

    @intrinsic
    def add(typingctx, a, b):
        def codegen(context, builder, signature, args):
            pairs = zip(elements(builder, args[0]), elements(builder, args[1]), strict=True)
            return as_pack(context, builder, [builder.fadd(x, y) for x, y in pairs])

        return pack_type(a, b), codegen

    @intrinsic
    def divide(typingctx, pack, number):
        def codegen(context, builder, signature, args):
            divisor = context.cast(builder, args[1], signature.args[1], sum_type)
            return as_pack(context, builder, [builder.fdiv(x, divisor) for x in elements(builder, args[0])])

        return pack_type(pack, number), codegen

    return Pack(width, load, store, get, put, zero, add, divide)
