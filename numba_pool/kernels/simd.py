"""Sixteen numbers at a time: a SIMD vector as a Numba value.

LLVM vectorizes long loops by itself, but a row of a feature map is short (7, 13, 56 elements), and a short loop is
left scalar.
So the kernels say what they mean: `load` sixteen neighbours, add them, `store` them.
A `Lanes` value is LLVM's ``<16 x float>`` (or ``double``): one AVX-512 register, two of AVX2, four of NEON.

Memory may hold half types, which Numba does not compute with.
They come as 16-bit integers, ``int16`` for float16 and ``uint16`` for bfloat16, and become float32 in the register.
"""

import operator

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model
from numba.np.numpy_support import as_dtype

LANES = 16

_i8, _i16, _i32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_half, _float, _double = ir.HalfType(), ir.FloatType(), ir.DoubleType()


class Lanes(types.Type):
    """The type of `LANES` float32 or float64 values that are computed with as one."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        scalar = _double if fe_type.dtype == types.float64 else _float
        super().__init__(dmm, fe_type, ir.VectorType(scalar, LANES))


def _accumulator(array):
    """Return the type that an array's elements are computed with: float32 for half types, else their own."""
    return types.float32 if array.dtype in (types.int16, types.uint16) else array.dtype


def _like(shape, scalar):
    """Return the LLVM type with the elements `scalar` and the lanes of `shape`, which may be a scalar too."""
    return ir.VectorType(scalar, shape.count) if isinstance(shape, ir.VectorType) else scalar


def _constant(shape, value):
    """Return a constant of a scalar or vector type."""
    return ir.Constant(shape, [value] * shape.count if isinstance(shape, ir.VectorType) else value)


def _converts_halves(context):
    """Say whether the processor converts float16 itself; else LLVM would call a function that Numba does not have."""
    triple, _, features = context.codegen().magic_tuple()
    return "+f16c" in features or triple.startswith(("aarch64", "arm64"))


def _widen(context, builder, dtype, bits):
    """Turn what memory holds (a scalar or a vector) into numbers to compute with."""
    floats = _like(bits.type, _float)
    if dtype == types.int16:
        if _converts_halves(context):
            return builder.fpext(builder.bitcast(bits, _like(bits.type, _half)), floats)
        return _widen_half(builder, builder.zext(bits, _like(bits.type, _i32)), floats)
    if dtype == types.uint16:
        wide = _like(bits.type, _i32)
        # A bfloat16 is the upper half of a float32.
        return builder.bitcast(builder.shl(builder.zext(bits, wide), _constant(wide, 16)), floats)
    return bits


def _narrow(context, builder, dtype, value):
    """Round computed numbers, to nearest and ties to even, to what memory holds."""
    shorts, wide = _like(value.type, _i16), _like(value.type, _i32)
    if dtype == types.int16:
        if _converts_halves(context):
            return builder.bitcast(builder.fptrunc(value, _like(value.type, _half)), shorts)
        return builder.trunc(_narrow_half(builder, builder.bitcast(value, wide), value.type), shorts)
    if dtype == types.uint16:
        upper = _round_off(builder, builder.bitcast(value, wide), 16)
        # Rounding up could carry a NaN's payload over into infinity.
        nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(nan, _constant(wide, 0x7FC0), upper), shorts)
    return value


def _round_off(builder, bits, count):
    """Drop the lowest `count` bits of integers, rounding to nearest and ties to even."""
    odd = builder.and_(builder.lshr(bits, _constant(bits.type, count)), _constant(bits.type, 1))
    almost_half = _constant(bits.type, (1 << (count - 1)) - 1)
    return builder.lshr(builder.add(bits, builder.add(odd, almost_half)), _constant(bits.type, count))


def _widen_half(builder, bits, floats):
    """Turn the bits of float16, in 32-bit integers, into float32."""
    sign = builder.shl(builder.and_(bits, _constant(bits.type, 0x8000)), _constant(bits.type, 16))
    magnitude = builder.shl(builder.and_(bits, _constant(bits.type, 0x7FFF)), _constant(bits.type, 13))
    # Exponents count from 15 in float16 and from 127 in float32; a product makes up for it, subnormal numbers included.
    value = builder.fmul(builder.bitcast(magnitude, floats), _constant(floats, 2.0**112))
    special = builder.icmp_unsigned(">=", magnitude, _constant(bits.type, 0x1F << 23))  # infinity and NaN
    infinite = builder.or_(magnitude, _constant(bits.type, 0xFF << 23))
    finite = builder.bitcast(value, bits.type)
    return builder.bitcast(builder.or_(builder.select(special, infinite, finite), sign), floats)


def _narrow_half(builder, bits, floats):
    """Round float32, given as 32-bit integers, to the bits of float16."""
    sign = builder.and_(builder.lshr(bits, _constant(bits.type, 16)), _constant(bits.type, 0x8000))
    magnitude = builder.and_(bits, _constant(bits.type, 0x7FFFFFFF))
    # The sum rounds a subnormal result: its last bit is worth what the last bit of 0.5 is.
    half = _constant(floats, 0.5)
    sum_bits = builder.bitcast(builder.fadd(builder.bitcast(magnitude, floats), half), bits.type)
    subnormal = builder.sub(sum_bits, builder.bitcast(half, bits.type))
    normal = _round_off(builder, builder.sub(magnitude, _constant(bits.type, 112 << 23)), 13)
    result = builder.select(builder.icmp_unsigned("<", magnitude, _constant(bits.type, 113 << 23)), subnormal, normal)
    infinite = builder.icmp_unsigned(">=", magnitude, _constant(bits.type, 143 << 23))  # 2^16 and above
    result = builder.select(infinite, _constant(bits.type, 0x7C00), result)
    nan = builder.icmp_unsigned(">", magnitude, _constant(bits.type, 0xFF << 23))
    return builder.or_(builder.select(nan, _constant(bits.type, 0x7E00), result), sign)


def _pointer(context, builder, array_type, array, i, checked=None):
    # No wrap-around for negative indices: its test and select would cost as much as the addition.
    view = context.make_array(array_type)(context, builder, array)
    checked = context.enable_boundscheck if checked is None else checked
    return cgutils.get_item_pointer(context, builder, array_type, view, [i], wraparound=False, boundscheck=checked)


def _vector_pointer(context, builder, array_type, array, i, n):
    if context.enable_boundscheck:
        # The first and the last of the lanes that are used; none may be.
        zero, one, all_lanes = n.type(0), n.type(1), n.type(LANES)
        used = builder.select(builder.icmp_signed("<", n, all_lanes), n, all_lanes)
        any_used = builder.icmp_signed(">", used, zero)
        for index in (i, builder.add(i, builder.sub(used, one))):
            _pointer(context, builder, array_type, array, builder.select(any_used, index, zero))
    pointer = _pointer(context, builder, array_type, array, i, checked=False)
    vector = ir.VectorType(context.get_data_type(array_type.dtype), LANES)
    return builder.bitcast(pointer, vector.as_pointer()), vector


def _splat(builder, scalar):
    """Copy a scalar into every lane."""
    one = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, _i32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_i32, LANES), [0] * LANES))


def _masked(builder, operation, vector, arguments, n):
    """Load or store the first `n` lanes (all of them if `n` is larger) and leave the others' memory alone."""
    used = builder.select(builder.icmp_signed("<", n, n.type(LANES)), n, n.type(LANES))
    ids = ir.Constant(ir.VectorType(_i8, LANES), list(range(LANES)))
    mask = builder.icmp_signed("<", ids, _splat(builder, builder.trunc(used, _i8)))
    *front, pointer = arguments
    scalar = {"i16": "i16", "float": "f32", "double": "f64", "i64": "i64"}[str(vector.element)]
    arguments = [*front, pointer, _i32(int(scalar[1:]) // 8), mask]
    if operation == "load":
        arguments.append(ir.Constant(vector, None))
    function_type = ir.FunctionType(vector if operation == "load" else ir.VoidType(), [a.type for a in arguments])
    suffix = "p0" if str(pointer.type) == "ptr" else f"p0v{LANES}{scalar}"
    name = f"llvm.masked.{operation}.v{LANES}{scalar}.{suffix}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _load(context, builder, array_type, array, i, n):
    pointer, vector = _vector_pointer(context, builder, array_type, array, i, n)
    return _widen(context, builder, array_type.dtype, _masked(builder, "load", vector, [pointer], n))


def _store(context, builder, array_type, array, i, value, n):
    pointer, vector = _vector_pointer(context, builder, array_type, array, i, n)
    _masked(builder, "store", vector, [_narrow(context, builder, array_type.dtype, value), pointer], n)


@intrinsic
def load(typingctx, array, i, n):
    """Return ``array[i : i + 16]`` in the accumulator's type; from lane `n` on, zeros, and memory is not read."""

    def codegen(context, builder, signature, arguments):
        return _load(context, builder, signature.args[0], *arguments)

    return Lanes(_accumulator(array))(array, types.intp, types.intp), codegen


@intrinsic
def store(typingctx, array, i, lanes, n):
    """Set ``array[i : i + 16]``, rounded to the array's type; from lane `n` on, memory stays as it is."""

    def codegen(context, builder, signature, arguments):
        _store(context, builder, signature.args[0], *arguments)

    return types.void(array, types.intp, Lanes(_accumulator(array)), types.intp), codegen


@intrinsic
def transpose_tile(typingctx, src, i, pitch, height, width, dst, to, dst_pitch):
    """Set ``dst[to + c * dst_pitch + r]`` to ``src[i + r * pitch + c]``, for `r` < `height` and `c` < `width`.

    Of more than sixteen, the first sixteen count.
    The rows are in registers.
    First the quarters off the diagonal change places, eight rows and columns large, then those of each quarter.
    """

    def codegen(context, builder, signature, arguments):
        src, i, pitch, height, width, dst, to, dst_pitch = arguments

        def nth(start, stride, count, n, limit):
            """Return where a row starts, and how many of its elements are there.

            A row that is not there starts where the first does: to ask for nothing from a page that is not mapped
            takes the processor longer than the rest of the tile.
            """
            there = builder.icmp_signed("<", limit.type(n), limit)
            at = builder.add(start, builder.mul(stride, stride.type(n)))
            return builder.select(there, at, start), builder.select(there, count, count.type(0))

        rows = []
        for r in range(LANES):
            rows.append(_load(context, builder, signature.args[0], src, *nth(i, pitch, width, r, height)))
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
        for c in range(LANES):
            at, n = nth(to, dst_pitch, height, c, width)
            _store(context, builder, signature.args[5], dst, at, rows[c], n)

    sizes = (types.intp,) * 4
    return types.void(src, *sizes, dst, types.intp, types.intp), codegen


@intrinsic
def pick(typingctx, lanes, values, indices, i, first):
    """Return `lanes`, those replaced by ``values[indices[i + lane] - first]`` for which there is such a value."""

    def codegen(context, builder, signature, arguments):
        lanes, values, indices, i, first = arguments
        pointer, _ = _vector_pointer(context, builder, signature.args[2], indices, i, i.type(LANES))
        first = _splat(builder, builder.trunc(first, _i32))
        which = builder.sub(builder.load(pointer, align=4), first)
        held = builder.icmp_unsigned("<", which, _constant(which.type, LANES))
        return builder.select(held, _permute(builder, values, which, _register_bits(context)), lanes)

    return lanes(lanes, values, indices, types.intp, types.intp), codegen


def _register_bits(context):
    """Return how many bits of float32 the processor permutes with one instruction, if it has any."""
    _, _, features = context.codegen().magic_tuple()
    return 256 if "+avx2" in features and "+avx512f" not in features else 512


def _permute(builder, values, which, bits):
    """Return ``values[which]``: for each lane the value that its own index names, and anything for a wrong index.

    LLVM makes one instruction of it for float32 (with AVX-512 for float64 too), if the values fit a register of `bits`
    bits, and takes more than that apart, one by one; so more are permuted by halves.
    """
    count = values.type.count
    if count * (64 if values.type.element == _double else 32) > bits:
        low, high = _parts(builder, values)
        halves = []
        for part in _parts(builder, which):
            in_low = builder.icmp_unsigned("<", part, _constant(part.type, count // 2))
            rest = builder.sub(part, _constant(part.type, count // 2))
            chosen = _permute(builder, low, part, bits), _permute(builder, high, rest, bits)
            halves.append(builder.select(in_low, *chosen))
        return builder.shuffle_vector(*halves, ir.VectorType(_i32, count)(list(range(count))))
    result = ir.Constant(values.type, ir.Undefined)
    for lane in range(count):
        value = builder.extract_element(values, builder.extract_element(which, _i32(lane)))
        result = builder.insert_element(result, value, _i32(lane))
    return result


def _parts(builder, value):
    """Return the lower and the upper half of a vector."""
    half = value.type.count // 2
    ids = [ir.VectorType(_i32, half)([start + lane for lane in range(half)]) for start in (0, half)]
    return [builder.shuffle_vector(value, value, which) for which in ids]


@intrinsic
def prefetch(typingctx, array, i):
    """Ask for the cache line of ``array[i]``, to be read soon; there may be no such element."""

    def codegen(context, builder, signature, arguments):
        array, i = arguments
        pointer = _pointer(context, builder, signature.args[0], array, i, checked=False)
        pointer = builder.bitcast(pointer, _i8.as_pointer())
        name = "llvm.prefetch." + ("p0" if str(pointer.type) == "ptr" else "p0i8")
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type, _i32, _i32, _i32])
        # For reading, into the second-level cache, and it is data.
        hints = [_i32(0), _i32(2), _i32(1)]
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [pointer, *hints])
        return context.get_dummy_value()

    return types.none(array, types.intp), codegen


@intrinsic
def get(typingctx, array, i):
    """Return ``array[i]`` in the accumulator's type; `i` is not negative."""

    def codegen(context, builder, signature, arguments):
        bits = builder.load(_pointer(context, builder, signature.args[0], *arguments))
        return _widen(context, builder, signature.args[0].dtype, bits)

    return _accumulator(array)(array, types.intp), codegen


@intrinsic
def put(typingctx, array, i, value):
    """Set ``array[i]``, rounded to the array's type; `i` is not negative."""

    def codegen(context, builder, signature, arguments):
        array, i, value = arguments
        bits = _narrow(context, builder, signature.args[0].dtype, value)
        builder.store(bits, _pointer(context, builder, signature.args[0], array, i))

    return types.void(array, types.intp, _accumulator(array)), codegen


@intrinsic
def rolled(typingctx):
    """Ask LLVM to leave the loops of the calling function as they are written.

    Most of them run two or three times, so that unrolling them costs more, when compiling and when running, than it
    gains.
    Functions that are taken into a kernel are optimized before, so they must ask for themselves.
    A kernel must not be taken into its callers, whose loops are not left alone.
    """

    def codegen(context, builder, signature, arguments):
        function = builder.function
        function.attributes.add("optsize")
        if "alwaysinline" not in function.attributes:
            function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def fill(typingctx, array, value):
    """Return sixteen copies of a number, in the type that `array` is accumulated in."""
    scalar = _accumulator(array)
    return Lanes(scalar)(array, scalar), lambda context, builder, signature, arguments: _splat(builder, arguments[1])


def scratch(array, size):
    """Return room for `size` numbers of the type that `array` is accumulated in; what is in it, nobody knows."""
    raise NotImplementedError("scratch is for compiled code")


@overload(scratch)
def _scratch(array, size):
    dtype = as_dtype(_accumulator(array))
    return lambda array, size: np.empty(size, dtype)


@intrinsic
def total(typingctx, lanes):
    """Return the sum of all lanes: halves are added to each other until one lane is left."""

    def codegen(context, builder, signature, arguments):
        (value,) = arguments
        while value.type.count > 1:
            value = builder.fadd(*_parts(builder, value))
        return builder.extract_element(value, _i32(0))

    return lanes.dtype(lanes), codegen


@intrinsic
def add_pairs(typingctx, a, b):
    """Return the sums of neighbouring lanes: of `a`, then of `b`."""

    def codegen(context, builder, signature, arguments):
        even, odd = (ir.VectorType(_i32, LANES)(list(range(start, 2 * LANES, 2))) for start in (0, 1))
        return builder.fadd(builder.shuffle_vector(*arguments, even), builder.shuffle_vector(*arguments, odd))

    return a(a, b), codegen


def _arithmetic(name):
    @intrinsic
    def compute(typingctx, a, b):
        return a(a, b), lambda context, builder, signature, arguments: getattr(builder, name)(*arguments)

    return compute


_add, _multiply, _divide = (_arithmetic(name) for name in ("fadd", "fmul", "fdiv"))


@overload(operator.add)
def _lanes_add(a, b):
    return (lambda a, b: _add(a, b)) if isinstance(a, Lanes) and a == b else None


@overload(operator.mul)
def _lanes_multiply(a, b):
    return (lambda a, b: _multiply(a, b)) if isinstance(a, Lanes) and a == b else None


@overload(operator.truediv)
def _lanes_divide(a, b):
    return (lambda a, b: _divide(a, b)) if isinstance(a, Lanes) and a == b else None
