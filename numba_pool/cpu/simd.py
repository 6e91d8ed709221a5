"""SIMD vectors as Numba values.

LLVM vectorizes long loops by itself, but a row of a feature map is short (7, 13, 56 elements), and a short loop is left
scalar.
So the kernels say what they mean: `load` neighboring elements, add them, `store` them.
A vector is LLVM's ``<16 x float>`` (or ``double``), or one of 64 elements, which LLVM splits into the registers that
the processor has: four of AVX-512, eight of AVX2.

Memory may hold half types, which Numba does not compute with.
They come as 16-bit integers, ``int16`` for float16 and ``uint16`` for bfloat16, and become float32 in the register.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, overload, register_model, type_callable

LANES = 16
WIDE = 64

_i8, _i16, _i32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_half, _float, _double = ir.HalfType(), ir.FloatType(), ir.DoubleType()


class Lanes(types.Type):
    """The type of `count` float32 or float64 values that are computed with as one."""

    def __init__(self, dtype, count):
        self.dtype, self.count = dtype, count
        super().__init__(f"Lanes({dtype}, {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        scalar = _double if fe_type.dtype == types.float64 else _float
        super().__init__(dmm, fe_type, ir.VectorType(scalar, fe_type.count))


def _accumulator(array):
    """Return the type that an array's elements are computed with: float32 for half types, else their own."""
    return types.float32 if array.dtype in (types.int16, types.uint16) else array.dtype


def _like(shape, scalar):
    """Return the LLVM type with the elements `scalar` and the lanes of `shape`, which may be a scalar too."""
    return ir.VectorType(scalar, shape.count) if isinstance(shape, ir.VectorType) else scalar


def _constant(shape, value):
    """Return a constant of a scalar or vector type."""
    return ir.Constant(shape, [value] * shape.count if isinstance(shape, ir.VectorType) else value)


def _widen(builder, dtype, bits):
    """Turn what memory holds (a scalar or a vector) into numbers to compute with."""
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(bits, _like(bits.type, _half)), _like(bits.type, _float))
    if dtype == types.uint16:
        wide = _like(bits.type, _i32)
        # A bfloat16 is the upper half of a float32.
        return builder.bitcast(builder.shl(builder.zext(bits, wide), _constant(wide, 16)), _like(bits.type, _float))
    return bits


def _narrow(builder, dtype, value):
    """Round computed numbers, to nearest and ties to even, to what memory holds."""
    shorts, wide = _like(value.type, _i16), _like(value.type, _i32)
    if dtype == types.int16:
        return builder.bitcast(builder.fptrunc(value, _like(value.type, _half)), shorts)
    if dtype == types.uint16:
        bits = builder.bitcast(value, wide)
        odd = builder.and_(builder.lshr(bits, _constant(wide, 16)), _constant(wide, 1))
        rounded = builder.add(bits, builder.add(odd, _constant(wide, 0x7FFF)))
        # Rounding up could carry a NaN's payload over into infinity.
        nan = builder.fcmp_unordered("uno", value, value)
        upper = builder.lshr(builder.select(nan, _constant(wide, 0x7FC00000), rounded), _constant(wide, 16))
        return builder.trunc(upper, shorts)
    return value


def _pointer(context, builder, array_type, array, i, checked=None):
    # No wrap-around for negative indices: its test and select would cost as much as the addition.
    view = context.make_array(array_type)(context, builder, array)
    checked = context.enable_boundscheck if checked is None else checked
    return cgutils.get_item_pointer(context, builder, array_type, view, [i], wraparound=False, boundscheck=checked)


def _vector_pointer(context, builder, array_type, array, i, n, count):
    """Return a pointer to `count` elements, of which the first `n` must lie inside the array."""
    if context.enable_boundscheck:
        any_used = builder.icmp_signed(">", n, n.type(0))
        for index in (i, builder.add(i, builder.sub(n, n.type(1)))):
            _pointer(context, builder, array_type, array, builder.select(any_used, index, n.type(0)))
    pointer = _pointer(context, builder, array_type, array, i, checked=False)
    vector = ir.VectorType(context.get_data_type(array_type.dtype), count)
    return builder.bitcast(pointer, vector.as_pointer()), vector


def _splat(builder, scalar, count):
    one = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined), scalar, _i32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_i32, count), [0] * count))


def _masked(builder, operation, vector, arguments, n):
    """Load or store the first `n` lanes and leave the others' memory alone."""
    ids = ir.Constant(ir.VectorType(_i8, vector.count), list(range(vector.count)))
    mask = builder.icmp_signed("<", ids, _splat(builder, builder.trunc(n, _i8), vector.count))
    *front, pointer = arguments
    scalar = {"i16": "i16", "float": "f32", "double": "f64", "i64": "i64"}[str(vector.element)]
    arguments = [*front, pointer, _i32(int(scalar[1:]) // 8), mask]
    if operation == "load":
        arguments.append(ir.Constant(vector, None))
    function_type = ir.FunctionType(vector if operation == "load" else ir.VoidType(), [a.type for a in arguments])
    suffix = "p0" if str(pointer.type) == "ptr" else f"p0v{vector.count}{scalar}"
    name = f"llvm.masked.{operation}.v{vector.count}{scalar}.{suffix}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _alignment(vector):
    """Return the alignment of an element, which is all that is known of a vector in memory."""
    return {"i16": 2, "float": 4, "double": 8, "i64": 8}[str(vector.element)]


@intrinsic
def load(typingctx, like, array, i):
    """Return as many elements from ``array[i]`` on as `like` has lanes, in the accumulator's type."""

    def codegen(context, builder, signature, arguments):
        _, array, i = arguments
        count = signature.return_type.count
        pointer, vector = _vector_pointer(context, builder, signature.args[1], array, i, i.type(count), count)
        bits = builder.load(pointer, align=_alignment(vector))
        return _widen(builder, signature.args[1].dtype, bits)

    return Lanes(_accumulator(array), like.count)(like, array, types.intp), codegen


@intrinsic
def load_first(typingctx, like, array, i, n):
    """Do what `load` does for the first `n` lanes, at most all; the others are zero, and memory is not read."""

    def codegen(context, builder, signature, arguments):
        _, array, i, n = arguments
        count = signature.return_type.count
        pointer, vector = _vector_pointer(context, builder, signature.args[1], array, i, n, count)
        return _widen(builder, signature.args[1].dtype, _masked(builder, "load", vector, [pointer], n))

    return Lanes(_accumulator(array), like.count)(like, array, types.intp, types.intp), codegen


@intrinsic
def store(typingctx, array, i, lanes):
    """Set the elements from ``array[i]`` on, rounded to the array's type."""

    def codegen(context, builder, signature, arguments):
        array, i, value = arguments
        count = signature.args[2].count
        pointer, vector = _vector_pointer(context, builder, signature.args[0], array, i, i.type(count), count)
        builder.store(_narrow(builder, signature.args[0].dtype, value), pointer, align=_alignment(vector))
        return context.get_dummy_value()

    return types.none(array, types.intp, Lanes(_accumulator(array), lanes.count)), codegen


@intrinsic
def store_first(typingctx, array, i, lanes, n):
    """Do what `store` does for the first `n` lanes, at most all; the others' memory stays as it is."""

    def codegen(context, builder, signature, arguments):
        array, i, value, n = arguments
        count = signature.args[2].count
        pointer, vector = _vector_pointer(context, builder, signature.args[0], array, i, n, count)
        _masked(builder, "store", vector, [_narrow(builder, signature.args[0].dtype, value), pointer], n)
        return context.get_dummy_value()

    return types.none(array, types.intp, Lanes(_accumulator(array), lanes.count), types.intp), codegen


@intrinsic
def transpose_tile(typingctx, src, i, pitch, dst, to, dst_pitch):
    """Set ``dst[to + c * dst_pitch + r]`` to ``src[i + r * pitch + c]``, for `r` and `c` from 0 to 15.

    The rows are in registers.
    First the quarters off the diagonal change places, eight rows and columns large, then those of each quarter.
    """

    def codegen(context, builder, signature, arguments):
        src, i, pitch, dst, to, dst_pitch = arguments
        lanes = i.type(LANES)

        def pointers(argument, array, start, stride):
            for n in range(LANES):
                at = builder.add(start, builder.mul(stride, stride.type(n)))
                yield _vector_pointer(context, builder, signature.args[argument], array, at, lanes, LANES)

        source, target = signature.args[0].dtype, signature.args[3].dtype
        rows = [_widen(builder, source, builder.load(p, align=_alignment(v))) for p, v in pointers(0, src, i, pitch)]
        for half in (8, 4, 2, 1):
            # Lanes of the second vector count from LANES on.
            kept = [LANES + lane - half if lane & half else lane for lane in range(LANES)]
            moved = [LANES + lane if lane & half else lane + half for lane in range(LANES)]
            for r in range(LANES):
                if not r & half:
                    pair = rows[r], rows[r + half]
                    rows[r], rows[r + half] = (
                        builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(_i32, LANES), ids))
                        for ids in (kept, moved)
                    )
        for (p, v), row in zip(pointers(3, dst, to, dst_pitch), rows, strict=True):
            builder.store(_narrow(builder, target, row), p, align=_alignment(v))
        return context.get_dummy_value()

    return types.none(src, types.intp, types.intp, dst, types.intp, types.intp), codegen


@intrinsic
def load_scalar(typingctx, array, i):
    """Return ``array[i]`` in the accumulator's type; `i` is not negative."""

    def codegen(context, builder, signature, arguments):
        bits = builder.load(_pointer(context, builder, signature.args[0], *arguments))
        return _widen(builder, signature.args[0].dtype, bits)

    return _accumulator(array)(array, types.intp), codegen


@intrinsic
def store_scalar(typingctx, array, i, value):
    """Set ``array[i]``, rounded to the array's type; `i` is not negative."""

    def codegen(context, builder, signature, arguments):
        array, i, value = arguments
        bits = _narrow(builder, signature.args[0].dtype, value)
        builder.store(bits, _pointer(context, builder, signature.args[0], array, i))
        return context.get_dummy_value()

    return types.none(array, types.intp, _accumulator(array)), codegen


@intrinsic
def move(typingctx, array, i, to, n):
    """Set ``array[to : to + n]`` to ``array[i : i + n]``; the two do not overlap."""

    def codegen(context, builder, signature, arguments):
        array, i, to, n = arguments
        last = builder.sub(n, n.type(1))
        pointers = []
        for first in (to, i):
            _pointer(context, builder, signature.args[0], array, builder.add(first, last))  # for its check
            pointers.append(_pointer(context, builder, signature.args[0], array, first))
        itemsize = signature.args[0].dtype.bitwidth // 8
        cgutils.raw_memcpy(builder, *pointers, n, itemsize)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, types.intp), codegen


def _prefetch(write):
    """Return what writes the code of a prefetch."""

    def codegen(context, builder, signature, arguments):
        array, i = arguments
        pointer = _pointer(context, builder, signature.args[0], array, i, checked=False)
        pointer = builder.bitcast(pointer, _i8.as_pointer())
        name = "llvm.prefetch." + ("p0" if str(pointer.type) == "ptr" else "p0i8")
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type, _i32, _i32, _i32])
        # Into the second-level cache, and it is data.
        hints = [_i32(write), _i32(3 if write else 2), _i32(1)]
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [pointer, *hints])
        return context.get_dummy_value()

    return codegen


@intrinsic
def prefetch(typingctx, array, i):
    """Ask for the cache line of ``array[i]``, to be read soon; there may be no such element."""
    return types.none(array, types.intp), _prefetch(write=0)


@intrinsic
def prefetch_write(typingctx, array, i):
    """Ask for the cache line of ``array[i]``, to be written soon; there may be no such element."""
    return types.none(array, types.intp), _prefetch(write=1)


@intrinsic
def no_unroll(typingctx):
    """Ask LLVM to leave the loops of the calling function as they are written.

    Most of them run two or three times, so that unrolling them costs more, when compiling and when running, than it
    gains.
    Functions that are inlined into a kernel are optimized before, so they must ask for themselves.
    A kernel must not be inlined into its callers, whose loops are not left alone.
    """

    def codegen(context, builder, signature, arguments):
        function = builder.function
        function.attributes.add("optsize")
        if "alwaysinline" not in function.attributes:
            function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def as_sum(typingctx, array, value):
    """Return a number in the type that `array` is accumulated in."""

    def codegen(context, builder, signature, arguments):
        return context.cast(builder, arguments[1], signature.args[1], signature.return_type)

    return _accumulator(array)(array, value), codegen


@intrinsic(prefer_literal=True)
def splat(typingctx, array, value, count):
    """Return `count` copies of a number, in the type that `array` is accumulated in; `count` is a constant."""
    lanes = Lanes(_accumulator(array), count.literal_value)

    def codegen(context, builder, signature, arguments):
        return _splat(builder, arguments[1], lanes.count)

    return lanes(array, lanes.dtype, count), codegen


@intrinsic
def splat_like(typingctx, like, value):
    """Return copies of a number, as many as `like` has lanes."""

    def codegen(context, builder, signature, arguments):
        return _splat(builder, arguments[1], like.count)

    return like(like, like.dtype), codegen


def scratch(array, size):
    """Return an array of `size` elements, not initialized, of the type that `array` is accumulated in."""
    return np.empty(size, array.dtype)


@overload(scratch)
def _scratch(array, size):
    dtype = np.float64 if _accumulator(array) == types.float64 else np.float32
    return lambda array, size: np.empty(size, dtype)


@intrinsic
def reduce_add(typingctx, lanes):
    """Return the sum of all lanes: halves are added to each other until one lane is left."""

    def codegen(context, builder, signature, arguments):
        (value,) = arguments
        while value.type.count > 1:
            half = value.type.count // 2
            low, high = (ir.VectorType(_i32, half)(list(range(start, start + half))) for start in (0, half))
            value = builder.fadd(builder.shuffle_vector(value, value, low), builder.shuffle_vector(value, value, high))
        return builder.extract_element(value, _i32(0))

    return lanes.dtype(lanes), codegen


def _arithmetic(operation, name):
    """Let compiled code apply an operator to two vectors of the same type."""

    @type_callable(operation)
    def _type(context):
        return lambda a, b: a if isinstance(a, Lanes) and a == b else None

    @lower_builtin(operation, Lanes, Lanes)
    def _lower(context, builder, sig, args):
        return getattr(builder, name)(*args)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")
