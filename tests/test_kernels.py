"""The CPU kernels against the reference, on memory of which every element is known."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import ROOT, assert_rounded, spawn
from llvmlite.binding import get_host_cpu_features

from numba_pool import _dlpack, reference
from numba_pool.kernels import cpu

# Elements of NaN before and after every array: whoever reads them spoils a result, whoever writes them is found out.
GUARD = 64

# N, C, H, W, oH, oW.
CASES = {
    "one element": (1, 1, 1, 1, 1, 1),
    "global": (2, 3, 13, 11, 1, 1),
    "equal windows": (2, 3, 12, 8, 3, 2),
    "equal wide windows": (1, 2, 36, 60, 2, 3),
    "windows that overlap": (1, 3, 7, 10, 4, 3),
    "primes": (2, 5, 31, 29, 7, 11),
    "one less": (2, 3, 18, 17, 17, 16),
    "one output row": (2, 17, 9, 20, 1, 7),
    "one output column": (2, 3, 20, 9, 7, 1),
    "one input row": (3, 4, 1, 50, 1, 7),
    "one input column": (3, 4, 50, 1, 7, 1),
    "as many as lanes": (2, 16, 16, 32, 5, 16),
    "one lane less": (2, 15, 15, 31, 4, 15),
    "one lane more": (2, 33, 17, 33, 6, 17),
    "windows over 64": (1, 2, 150, 331, 2, 3),
    "larger than the input": (2, 3, 3, 5, 7, 16),
    "much larger": (1, 2, 1, 1, 40, 33),
    "multiple of the input": (2, 3, 4, 6, 12, 18),
    "larger and smaller": (2, 3, 5, 40, 9, 6),
    "many planes": (40, 50, 3, 3, 2, 2),
    "enough for threads": (2, 8, 64, 65, 13, 7),
    "a piece": (1, 2, 4, cpu.PIECE // 4, 1, 1),
    "a piece and an element": (1, 2, 1, cpu.PIECE + 1, 1, 1),
    "a piece and a row": (1, 3, cpu.PIECE // 8 + 1, 16, 1, 2),
    "pieces of unequal size": (1, 2, 101, 211, 1, 2),
    "tall windows": (1, 3, cpu.PIECE + 3, 3, 2, 2),
    "tall and narrow": (1, 2, 2 * cpu.PIECE + 3, 1, 2, 1),
    "long sums": (1, 2, 256, 256, 1, 1),
    "wide windows": (1, 2, 2, 2 * cpu.PIECE + 809, 1, 2),
    "more planes than are packed": (7, cpu.PACK // 24, 4, 6, 2, 3),
    "tiny planes that are runs": (5, 300, 2, 2, 1, 1),
    "elements that become runs": (3, 70, 2, 1, 6, 5),
    "packed, two widths and heights": (3, 50, 14, 14, 3, 3),
    "packed, several registers": (2, 3, 24, 25, 39, 40),
    "packed, shares": (2, 9, 20, 21, 13, 14),
    "small planes, two widths and heights": (3, 50, 8, 8, 5, 5),
    "more small planes than go abreast": (3, cpu.ABREAST - 7, 5, 6, 3, 4),
    "small planes as many as lanes": (2, 8, 5, 5, 3, 3),
    "the largest of the small planes": (1, 5, 12, 17, 10, 18),
    "beyond the small planes": (1, 5, 12, 17, 11, 18),
    "narrow windows of long rows": (1, 2, 5, 3000, 2, 1100),
    "narrow windows that span many registers": (1, 3, 6, 700, 3, 96),
    "rows in groups": (1, 2, 2 * cpu.ROWS + 1, 200, 1, 70),
    "a run in equal pieces": (1, 2, 40, cpu.PIECE // 8, 1, 1),
    "a run of a prime length": (1, 1, cpu.PIECE + 3, 1, 1, 1),
    "runs of one row": (2, 3, 1, 120, 1, 10),
    "runs of one row in pieces": (1, 2, 1, 4 * cpu.PIECE, 1, 2),
    "more than 64 channels": (1, 83, 9, 40, 2, 2),
    "tall windows of gradients": (1, 2, 3, 2, cpu.PIECE + 5, 5),
    "one row to several": (2, 3, 1, 64, 2, 2),
    "rows to copy": (2, 3, 32, 40, 2, 2),
    "a row of pixels": (2, 17, 1, 64, 1, 8),
    "windows as wide as the plane": (2, 17, 9, 16, 5, 1),
    "low and wide windows of gradients": (1, 3, 5, 1, 33, 18),
    "windows of few pixels": (2, 64 + 32 + 11, 9, 11, 4, 5),
    "pairs of columns": (2, 3, 9, 34, 4, 17),
    "pairs, packed": (3, 50, 4, 4, 2, 2),
    "fours, more than are folded at once": (1, 2, 12, 280, 3, 70),
    "eights, packed": (2, 7, 32, 32, 5, 4),
    "as wide as two outputs, shares": (2, 3, 4, 17, 9, 34),
    "columns that are kept": (2, 3, 19, 70, 4, 70),
    "columns that are kept, pieces": (1, 2, cpu.PIECE_RUN + 9, 64, 1, 64),
    "short rows": (2, 3, 45, 60, 2, 4),
    "short rows, one more than two registers": (2, 2, 2 * cpu.ROWS + 3, 33, 2, 1),
    "short rows of four registers": (1, 3, 3 * cpu.ROWS, 64, 1, 9),
    "few channels that are picked": (2, 5, 21, 34, 9, 15),
    "few channels, pieces": (1, 3, 2 * cpu.PIECE_ROWS + 3, 9, 1, 4),
    "few channels, several pixels in a row": (2, 3, 23, 84, 4, 1),
    "few channels, pieces of such rows": (1, 11, 3 * cpu.PIECE_RUN // 4 + 5, 22, 1, 1),
    "a pixel for a whole plane": (2, 40, 1, 1, 45, 30),
    "a pixel for many columns": (1, 37, 3, 2, 10, 70),
    "a pixel of many channels": (1, 2 * cpu.REPEATED + 5, 2, 2, 5, 4),
    "larger than the caches": (1, 2, 1030, cpu.LARGE // 2048, 5, 3),
}


class Encoding(NamedTuple):
    """How memory holds numbers of a type, and how finely; half types are held as integers of the same bits."""

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    epsilon: float
    tiny: float


ENCODINGS = {
    "float32": Encoding(lambda x: x.astype(np.float32), lambda x: x.astype(float), 2.0**-23, 2.0**-149),
    "float64": Encoding(lambda x: x.astype(float), lambda x: x.copy(), 2.0**-52, 0.0),
    "float16": Encoding(
        lambda x: x.astype(np.float16).view(np.int16),
        lambda bits: bits.view(np.float16).astype(float),
        2.0**-10,
        2.0**-24,
    ),
    "bfloat16": Encoding(
        # Cutting the low half off is rounding enough: what is left is the input.
        lambda x: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
        lambda bits: (bits.astype(np.uint32) << 16).view(np.float32).astype(float),
        2.0**-7,
        2.0**-133,
    ),
}


def guarded(array, encoding):
    """Return a flat copy of an array in memory that has NaN on both sides, and the whole of that memory."""
    memory = encoding.encode(np.full(array.size + 2 * GUARD, np.nan))
    memory[GUARD:-GUARD] = array.reshape(-1)
    return memory[GUARD:-GUARD], memory


def launch(kernel, source, size, sizes, encoding, channels_last, threads):
    """Run a kernel on an encoded NCHW array; return the NCHW result of the given height and width, still encoded."""
    N, C = source.shape[:2]
    axes, back, planes, inner = (
        ((0, 2, 3, 1), (0, 3, 1, 2), N, C) if channels_last else ((0, 1, 2, 3),) * 2 + (N * C, 1)
    )
    shape = np.take((N, C, *size), axes)
    flat, source_memory = guarded(source.transpose(axes), encoding)
    result, memory = guarded(encoding.encode(np.full(shape, np.nan)), encoding)
    source_before, before = source_memory.copy(), memory.copy()
    kernel(flat, result, planes, *sizes, inner, threads)
    assert source_memory.tobytes() == source_before.tobytes(), "the kernel wrote into its source"
    for edge in (slice(GUARD), slice(-GUARD, None)):
        assert memory[edge].tobytes() == before[edge].tobytes(), "the kernel wrote outside its result"
    return result.reshape(shape).transpose(back)


TENSOR_DTYPES = {"float32": torch.float32, "float64": torch.float64, "int16": torch.float16, "uint16": torch.bfloat16}


def plan_and_run(plan, src, dst, *sizes_and_threads):
    """Make the tensors that the arrays stand for, plan and run."""
    *sizes, threads = sizes_and_threads
    dtype = TENSOR_DTYPES[src.dtype.name]
    plan(_dlpack.FLAT_TENSORS[dtype], *sizes).run(*(torch.from_numpy(a).view(dtype) for a in (src, dst)), threads)


def forward(*arguments):
    """Pool as all kernels here do: arrays and sizes in, the second array filled."""
    plan_and_run(cpu.forward, *arguments)


def backward(*arguments):
    """Spread gradients."""
    plan_and_run(cpu.backward, *arguments)


def check(case, encoding, forward=forward, backward=backward):
    """Hold kernels to the reference, in both directions and layouts, and to the same bits on any number of threads."""
    N, C, *sizes = case
    rng = np.random.default_rng(0)
    directions = (
        (forward, reference.forward, sizes[:2], sizes[2:]),
        (backward, reference.backward, sizes[2:], sizes[:2]),
    )
    for kernel, expected, source_size, size in directions:
        source = encoding.encode(rng.normal(0.5, 1.0, (N, C, *source_size)))
        values = encoding.decode(source).astype(np.longdouble)
        exact, magnitude = expected(values, tuple(size)), expected(np.abs(values), tuple(size))
        sum_epsilon = min(encoding.epsilon, 2.0**-23)
        for channels_last in (False, True):
            one, two, three = (
                launch(kernel, source, size, sizes, encoding, channels_last, threads) for threads in (1, 2, 3)
            )
            assert_rounded(encoding.decode(one), exact, magnitude, encoding.epsilon, sum_epsilon, encoding.tiny)
            assert one.tobytes() == two.tobytes() == three.tobytes(), "the bits depend on the number of threads"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("case", CASES)
def test_kernels_against_the_reference(case, encoding, monkeypatch):
    # Small cases are shared out to threads as well.
    monkeypatch.setattr(cpu, "GRAIN", 1)
    monkeypatch.setattr(cpu, "FAST_GRAIN", 1)
    check(CASES[case], ENCODINGS[encoding])


def test_more_equal_rows_than_one_job_has(monkeypatch):
    monkeypatch.setattr(cpu, "FAST_GRAIN", 1)
    monkeypatch.setattr(cpu, "SHARED", 64)
    for case in ((1, 2, 1, 2, 27, 11), (2, 37, 2, 1, 19, 31)):
        check(case, ENCODINGS["float32"])


@pytest.mark.parametrize("inner", [1, 3, 64])
@pytest.mark.parametrize("output_size", [1, 2, 7])
def test_one_large_plane_is_work_for_every_thread(output_size, inner):
    sizes = 2048, 2048, output_size, output_size, inner
    for plan in (cpu.forward, cpu.backward):
        assert plan(_dlpack.FLAT_TENSORS[torch.float32], 1, *sizes).threads >= 8


def in_numpy(compute):
    """Make a kernel of a function on NCHW arrays; its name ends with its direction."""
    backwards = compute.__name__.endswith("backward")

    @functools.wraps(compute)
    def kernel(src, dst, planes, H, W, oH, oW, inner, threads):
        source, result = ((oH, oW), (H, W)) if backwards else ((H, W), (oH, oW))
        array = src.reshape(planes, *source, inner).transpose(0, 3, 1, 2)
        dst.reshape(planes, *result, inner)[:] = compute(array, H, W, oH, oW, threads).transpose(0, 2, 3, 1)

    return kernel


def exact_end(o, inputs, outputs):
    """Return where the window of an output ends."""
    return -(-(o + 1) * inputs // outputs)


def windows(H, W, oH, oW, end=exact_end):
    """Return all windows as indices, for ends that may be computed in a way of their own."""
    rows, columns = (
        [slice(o * inputs // outputs, end(o, inputs, outputs)) for o in range(outputs)]
        for inputs, outputs in ((H, oH), (W, oW))
    )
    return [[(..., row, column) for column in columns] for row in rows]


def averages(array, windows, mean=lambda window: window.mean(axis=(2, 3), dtype=float)):
    """Average windows."""
    return np.stack([np.stack([mean(array[window]) for window in row], -1) for row in windows], -2)


@in_numpy
def right_forward(array, H, W, oH, oW, threads):
    """Do everything right."""
    return averages(array, windows(H, W, oH, oW))


@in_numpy
def right_backward(array, H, W, oH, oW, threads):
    """Do everything right."""
    return reference.backward(array.astype(float), (H, W))


@in_numpy
def truncated_forward(array, H, W, oH, oW, threads):
    """Forget what lies beyond 64 elements of a window, as a kernel with a fixed block does."""
    return averages(
        array,
        windows(
            H, W, oH, oW, lambda o, inputs, outputs: min(exact_end(o, inputs, outputs), o * inputs // outputs + 64)
        ),
    )


@in_numpy
def floor_forward(array, H, W, oH, oW, threads):
    """Round the end of a window down."""
    return averages(
        array,
        windows(H, W, oH, oW, lambda o, inputs, outputs: max((o + 1) * inputs // outputs, o * inputs // outputs + 1)),
    )


@in_numpy
def one_divisor_forward(array, H, W, oH, oW, threads):
    """Divide all sums by the area of the first window."""
    area = exact_end(0, H, oH) * exact_end(0, W, oW)
    return averages(array, windows(H, W, oH, oW), lambda window: window.sum(axis=(2, 3), dtype=float) / area)


@in_numpy
def one_chain_forward(array, H, W, oH, oW, threads):
    """Add up the elements of a window one after the other in float32."""

    def mean(window):
        chain = window.reshape(*window.shape[:2], -1).cumsum(axis=2, dtype=np.float32)
        return chain[..., -1] / chain.shape[2]

    return averages(array, windows(H, W, oH, oW), mean)


@in_numpy
def thread_dependent_forward(array, H, W, oH, oW, threads):
    """Give other bits on several threads than on one, within what rounding allows."""
    result = averages(array, windows(H, W, oH, oW)).astype(np.float32)
    return result if threads == 1 else np.nextafter(result, np.float32(np.inf))


@in_numpy
def incomplete_forward(array, H, W, oH, oW, threads):
    """Leave the last element as it was."""
    result = averages(array, windows(H, W, oH, oW))
    result[-1, -1, -1, -1] = np.nan
    return result


@in_numpy
def lost_update_backward(array, H, W, oH, oW, threads):
    """Lose one of two gradients that meet in an element, as a race does."""
    result = np.zeros((*array.shape[:2], H, W))
    for oh, row in enumerate(windows(H, W, oH, oW)):
        for ow, window in enumerate(row):
            part = result[window]
            part[:] = array[:, :, oh, ow, None, None] / part[0, 0].size
    return result


@in_numpy
def one_divisor_backward(array, H, W, oH, oW, threads):
    """Divide all gradients by the area of the first window."""
    area = exact_end(0, H, oH) * exact_end(0, W, oW)
    areas = [[np.empty((H, W))[window].size for window in row] for row in windows(H, W, oH, oW)]
    return reference.backward(array * (np.array(areas) / area), (H, W))


@in_numpy
def half_sums_backward(array, H, W, oH, oW, threads):
    """Add gradients up in float16."""
    return reference.backward(array.view(np.float16), (H, W)).view(np.int16)


def reading_outside_forward(src, dst, *sizes):
    """Read one element to the right of the right one."""
    forward(np.lib.stride_tricks.as_strided(src[1:], src.shape, src.strides), dst, *sizes)


def writing_outside_forward(src, dst, *sizes):
    """Do everything right, and then one element too much."""
    forward(src, dst, *sizes)
    dst.base[GUARD + dst.size] = 0


def writing_into_source_forward(src, dst, *sizes):
    """Do everything right, and then use the source for something else."""
    forward(src, dst, *sizes)
    src[-1] = 0


def check_all(*kernels, encoding="float32"):
    """Hold kernels, whose names end with their direction, to the reference in all cases."""
    for case in CASES.values():
        check(case, ENCODINGS[encoding], **{kernel.__name__.rpartition("_")[2]: kernel for kernel in kernels})


WRONG = {
    truncated_forward: "are wrong",
    floor_forward: "are wrong",
    one_divisor_forward: "are wrong",
    one_chain_forward: "are wrong",
    incomplete_forward: "are wrong",
    reading_outside_forward: "are wrong",
    writing_outside_forward: "outside its result",
    writing_into_source_forward: "into its source",
    thread_dependent_forward: "number of threads",
    lost_update_backward: "are wrong",
    one_divisor_backward: "are wrong",
    half_sums_backward: "are wrong",
}


@pytest.mark.parametrize("kernel", WRONG, ids=lambda kernel: kernel.__name__)
def test_a_wrong_kernel_is_caught(kernel):
    with pytest.raises(AssertionError, match=WRONG[kernel]):
        check_all(kernel, encoding="float16" if kernel is half_sums_backward else "float32")


def test_a_right_kernel_passes():
    check_all(right_forward, right_backward)


BOUNDS_CHECKED = """
import sys, numba, numpy, pytest
from numba_pool.kernels import simd

@numba.njit
def read(array, i):
    return simd.total(simd.load(array, i, 16))

array = numpy.zeros(20, numpy.float32)
read(array, 4)
with pytest.raises(IndexError):
    read(array, 5)
raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1], "-k", "reference and float32"]))
"""


@pytest.mark.slow
def test_kernels_stay_within_their_arrays(tmp_path):
    """Run the cases under Numba's bounds checking, in a process of its own, since it is compiled in."""
    # One type is enough: indices do not depend on it.
    printed = spawn(BOUNDS_CHECKED, ROOT / "tests/test_kernels.py", NUMBA_BOUNDSCHECK=1, NUMBA_CACHE_DIR=tmp_path)
    assert f"{len(CASES)} passed" in printed


CONVERT_HALVES = """
import numba, numpy as np
from numba_pool.kernels import simd

@numba.njit
def widen(halves, floats):
    for i in range(0, halves.size, 16):
        simd.store(floats, i, simd.load(halves, i, 16), 16)

@numba.njit
def narrow(floats, halves):
    for i in range(0, halves.size - 16, 16):
        simd.store(halves, i, simd.load(floats, i, 16), 16)
    for i in range(halves.size - 16, halves.size):
        simd.put(halves, i, simd.get(floats, i))

halves = np.arange(1 << 16).astype(np.uint16).view(np.int16)
floats = np.empty(halves.size, np.float32)
widen(halves, floats)
np.testing.assert_array_equal(floats, halves.view(np.float16))

# Every float16, the middle between it and the next, and what is nearest to both.
bits = floats[np.isfinite(floats)].view(np.uint32)
floats = np.concatenate([bits + step for step in (0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF)]).astype(np.uint32)
floats = np.concatenate([floats.view(np.float32), np.float32([np.inf, -np.inf, np.nan, 65520, 1e30, -1e-30, 0, -0.0])])
floats = np.resize(floats, -(-floats.size // 16) * 16)
halves = np.empty(floats.size, np.int16)
narrow(floats, halves)
with np.errstate(over="ignore", under="ignore"):
    expected = floats.astype(np.float16)
np.testing.assert_array_equal(halves.view(np.float16), expected)
np.testing.assert_array_equal(np.signbit(halves.view(np.float16)), np.signbit(expected))
"""


GENERIC = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}


@pytest.mark.parametrize("processor", [{}, GENERIC], ids=["this", "without F16C"])
def test_conversion_of_every_half(processor, tmp_path):
    spawn(CONVERT_HALVES, NUMBA_CACHE_DIR=tmp_path, **processor)


PERMUTE = """
import numba, numpy as np
from numba_pool.kernels import simd

@numba.njit
def permute(values, indices, result):
    lanes = simd.fill(values, -1.0)
    for first in range(0, values.size, 16):
        lanes = simd.pick(lanes, simd.load(values, first, 16), indices, 0, first)
    simd.store(result, 0, lanes, 16)

rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    values, result = rng.random(48).astype(dtype), np.empty(16, dtype)
    for _ in range(100):
        indices = rng.integers(-1, 48, 16, np.int32)  # -1 for a lane that is left alone
        permute(values, indices, result)
        np.testing.assert_array_equal(result, np.where(indices < 0, -1, values[indices]))
"""

AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+f16c,+fma,+bmi,+bmi2"}


@pytest.mark.parametrize("processor", [{}, AVX2, GENERIC], ids=["this", "with AVX2", "without"])
def test_permutations_with_any_instructions(processor, tmp_path):
    if processor is AVX2 and not get_host_cpu_features().get("avx2"):
        pytest.skip("this processor has no AVX2")
    spawn(PERMUTE, NUMBA_CACHE_DIR=tmp_path, **processor)
