"""The CPU kernels against the reference, on memory of which every element is known."""

import functools

import numba
import numpy as np
import pytest
import torch
from cpu_cases import CASES, ENCODINGS, directions, in_memory_order, launch
from helpers import ROOT, assert_rounded, spawn
from llvmlite.binding import get_host_cpu_features

from numba_pool import cpu, reference
from numba_pool.cpu import simd
from numba_pool.cpu.lines import BLOCK
from numba_pool.cpu.simd import LANES, WIDE
from numba_pool.cpu.steps import CHAIN, GROUP, ROWS

# Elements of NaN before and after every array: a kernel that reads them spoils its result, and writes to them show.
# An odd number, so that no array begins where a vector would be aligned.
GUARD = 67


def guarded(array, encoding):
    """Return a flat copy of an array in memory that has NaN on both sides, and the whole of that memory."""
    memory = encoding.encode(np.full(array.size + 2 * GUARD, np.nan))
    memory[GUARD:-GUARD] = array.reshape(-1)
    return memory[GUARD:-GUARD], memory


def run(kernel, source, size, sizes, encoding, channels_last, threads):
    """Run a kernel on an encoded NCHW array; return the NCHW result of the given height and width, still encoded."""
    ordered, planes, C = in_memory_order(source, channels_last)
    result_shape = (*source.shape[:2], *size)
    shape = in_memory_order(np.empty(result_shape), channels_last)[0].shape
    flat, source_memory = guarded(ordered, encoding)
    result, memory = guarded(encoding.encode(np.full(shape, np.nan)), encoding)
    source_before, before = source_memory.copy(), memory.copy()
    kernel(flat, result, planes, *sizes, C, threads)
    assert source_memory.tobytes() == source_before.tobytes(), "the kernel wrote into its source"
    for edge in (slice(GUARD), slice(-GUARD, None)):
        assert memory[edge].tobytes() == before[edge].tobytes(), "the kernel wrote outside its result"
    result = result.reshape(shape)
    return result.transpose(0, 3, 1, 2) if channels_last else result


forward = functools.partial(launch, cpu.forward)
backward = functools.partial(launch, cpu.backward)


def check(case, encoding, **kernels):
    """Hold kernels to the reference, in both layouts, and to the same bits on any number of threads.

    Their names are their directions.
    """
    N, C, *sizes = case
    rng = np.random.default_rng(0)
    for direction, source_size, size in directions(case):
        if direction not in kernels:
            continue
        source = encoding.encode(rng.normal(0.5, 1.0, (N, C, *source_size)))
        values = encoding.decode(source).astype(encoding.exact)
        exact, magnitude = (getattr(reference, direction)(v, size) for v in (values, np.abs(values)))
        sum_epsilon = min(encoding.epsilon, 2.0**-23)
        for channels_last in (False, True):
            one, two, three = (
                run(kernels[direction], source, size, sizes, encoding, channels_last, threads) for threads in (1, 2, 3)
            )
            assert_rounded(encoding.decode(one), exact, magnitude, encoding.epsilon, sum_epsilon, encoding.tiny)
            assert one.tobytes() == two.tobytes() == three.tobytes(), "the bits depend on the number of threads"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("case", CASES)
def test_kernels_against_the_reference(case, encoding, monkeypatch):
    monkeypatch.setattr(cpu, "GRAIN", 1)  # small cases are shared out to threads as well
    check(CASES[case], ENCODINGS[encoding], forward=forward, backward=backward)


def facts_of(direction, source_size, size, planes_and_channels):
    """Return what is remarkable in the way that the kernels take."""
    planes, C = planes_and_channels
    average = int(direction == "forward")
    kernel, units, (sH, sW, dH, dW, C, _, parts) = cpu.choose(planes, *source_size, *size, C, average)
    name = kernel.__name__
    fact = f"{name}, average={average}" + (", in parts" if parts > 1 else "")
    facts = {name, fact}
    if name == "pool_planes":
        group = GROUP // max(sH * sW, dH * dW)
        deep = "several deep" if group >= 2 * WIDE < units else "side by side"
        facts |= {f"{fact}, {deep}", f"{deep}, {'groups' if units > max(WIDE, group) else 'one group'}"}
    elif name == "pool_lines":
        channels = "few channels" if C > 1 else "one channel"
        facts |= {f"{fact}, {channels}", "lines that repeat" if dH > sH else "lines"}
        facts |= {f"{channels}, blocks of columns" if max(sW, dW) * C > BLOCK else f"{channels}, all columns"}
    elif name == "pool_pixels":
        facts |= {"pixels of lines that repeat" if dH > sH else "pixels of lines"}
        few, wide = (sH // dH + 2) * (sW // dW + 2) <= CHAIN, sW // dW >= ROWS
        facts |= {f"{fact}, {'few' if few else 'wide' if wide else 'rows first'}"}
    return facts


EVERY_WAY = {
    *(
        "sum_runs, average=1",
        "sum_runs, average=1, in parts",
        "spread_runs, average=0",
        "spread_runs, average=0, in parts",
    ),
    *(f"pool_planes, average={average}, {deep}" for average in (0, 1) for deep in ("side by side", "several deep")),
    *(f"{deep}, {groups}" for deep in ("side by side", "several deep") for groups in ("one group", "groups")),
    *(
        f"pool_lines, average={average}{parts}, {channels}"
        for average in (0, 1)
        for parts in ("", ", in parts")
        for channels in ("one channel", "few channels")
    ),
    *(
        f"{channels}, {blocks}"
        for channels in ("one channel", "few channels")
        for blocks in ("blocks of columns", "all columns")
    ),
    *("lines that repeat", "lines", "pixels of lines that repeat", "pixels of lines"),
    *(
        f"pool_pixels, average=1{way}"
        for way in (", few", ", wide", ", rows first", ", in parts, wide", ", in parts, rows first")
    ),
    *("pool_pixels, average=0", "pool_pixels, average=0, in parts"),
}


def test_the_cases_reach_every_way():
    reached = set()
    for case in CASES.values():
        for channels_last in (False, True):
            planes_and_channels = in_memory_order(np.empty((*case[:2], 1, 1)), channels_last)[1:]
            for direction in directions(case):
                reached |= facts_of(*direction, planes_and_channels)
    assert EVERY_WAY - reached == set()


def test_a_source_larger_than_the_caches():
    """It is asked for ahead, with addresses behind its end."""
    x = torch.randn(1, 3, 1 << 11, 1 << 11) + 0.5
    for channels_last in (False, True):
        source = in_memory_order(x.numpy(), channels_last)[0]
        flat, _ = guarded(source, ENCODINGS["float32"])
        result = np.empty(3, np.float32)
        sizes = (1, *x.shape[2:], 1, 1, 3) if channels_last else (3, *x.shape[2:], 1, 1, 1)
        forward(flat, result, *sizes, 1)
        np.testing.assert_allclose(result, x.double().mean((0, 2, 3)).numpy(), rtol=1e-6)


def in_numpy(compute):
    """Make a kernel of a function on NCHW arrays; its name ends with its direction."""
    backwards = compute.__name__.endswith("backward")

    @functools.wraps(compute)
    def kernel(src, dst, planes, H, W, oH, oW, C, threads):
        source, result = ((oH, oW), (H, W)) if backwards else ((H, W), (oH, oW))
        array = src.reshape(planes, *source, C).transpose(0, 3, 1, 2)
        dst.reshape(planes, *result, C)[:] = compute(array, H, W, oH, oW, threads).transpose(0, 2, 3, 1)

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
    """Hold kernels, whose names end with their direction, to the reference in all cases but the slowest."""
    for case in CASES.values():
        if max(case[2:]) > 3000:
            continue
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


# Sizes of planes and channels, for each way of the kernels.
NEIGHBORS = {
    "runs": (1, 5, 7, 1, 1),
    "runs in parts": (1, 3, 1500, 1, 1),
    "tiny planes": (1, 3, 4, 2, 2),
    "small planes": (1, 9, 11, 4, 5),
    "small planes, whole windows": (1, 8, 8, 4, 4),
    "lines": (1, 40, 70, 7, 6),
    "lines that repeat": (1, 4, 60, 12, 50),
    "blocks of columns": (1, 4, 1500, 3, 7),
    "parts": (1, 300, 20, 2, 3),
    "few channels": (3, 9, 11, 4, 5),
    "few channels, blocks": (5, 3, 400, 2, 7),
    "pixels": (20, 9, 11, 4, 5),
    "pixels, wide windows": (20, 4, 40, 3, 4),
    "columns that are kept": (1, 9, 20, 4, 20),
}


def check_neighbors(kernel, sizes, source_size, size, C, count):
    """Hold the bits of planes in a batch of `count` to those in a larger one, and in one where the others are NaN."""
    source = np.random.default_rng(0).normal(0.5, 1.0, (140, source_size[0] * source_size[1] * C)).astype(np.float32)

    def pooled(planes):
        result = np.empty((len(planes), size[0] * size[1] * C), np.float32)
        kernel(planes.reshape(-1), result.reshape(-1), len(planes), *sizes, C, 1)
        return result

    first = 7
    batch, expected = source[first : first + count], pooled(source)[first : first + count]
    assert pooled(batch).tobytes() == expected.tobytes(), "the bits depend on how many planes there are"
    for plane in {0, count // 2, count - 1}:
        others = np.full_like(batch, np.nan)
        others[plane] = batch[plane]
        assert pooled(others)[plane].tobytes() == expected[plane].tobytes(), "the bits depend on other planes"


@pytest.mark.parametrize("count", [1, 15, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("sizes", NEIGHBORS)
def test_the_bits_of_a_plane_do_not_depend_on_its_neighbors(sizes, count):
    C, *sizes = NEIGHBORS[sizes]
    check_neighbors(forward, sizes, sizes[:2], sizes[2:], C, count)
    check_neighbors(backward, sizes, sizes[2:], sizes[:2], C, count)


@in_numpy
def batch_dependent_forward(array, H, W, oH, oW, threads):
    """Give other bits in a large batch, within what rounding allows."""
    result = averages(array, windows(H, W, oH, oW)).astype(np.float32)
    return result if len(array) < 16 else np.nextafter(result, np.float32(np.inf))


@in_numpy
def leaking_forward(array, H, W, oH, oW, threads):
    """Add nothing of another plane, which is NaN where that is."""
    result = averages(array, windows(H, W, oH, oW))
    return result + 0 * np.roll(result, 1, axis=0)


@pytest.mark.parametrize(("kernel", "what"), [(batch_dependent_forward, "how many"), (leaking_forward, "other planes")])
def test_a_kernel_that_mixes_planes_is_caught(kernel, what):
    with pytest.raises(AssertionError, match=f"the bits depend on {what}"):
        check_neighbors(kernel, (4, 6, 2, 3), (4, 6), (2, 3), 1, 15)


@numba.njit
def convert(src, dst):
    """Copy an array into one of another type: vectors first, then the last elements one by one."""
    like = simd.splat(src, 0.0, LANES)
    for i in range(0, src.size - LANES, LANES):
        simd.store(dst, i, simd.load(like, src, i))
    for i in range(src.size - LANES, src.size):
        simd.store_scalar(dst, i, simd.load_scalar(src, i))


@pytest.mark.parametrize("encoding", ["float16", "bfloat16"])
def test_conversion_of_every_half(encoding):
    """There and back; torch converts numbers alone."""
    dtype = ENCODINGS[encoding].dtype
    memory = np.arange(1 << 16).astype(np.uint16)
    if encoding == "float16":
        memory = memory.view(np.int16)
    halves = torch.from_numpy(memory).view(dtype)
    floats = np.empty(memory.size, np.float32)
    convert(memory, floats)
    np.testing.assert_array_equal(floats, halves.float().numpy())

    # Every number, the middle between it and the next, and what is nearest to both.
    step = 1 << 13 if encoding == "float16" else 1 << 16
    steps = (0, 1, step // 2 - 1, step // 2, step // 2 + 1, step - 1)
    bits = np.concatenate([floats[np.isfinite(floats)].view(np.uint32) + s for s in steps]).astype(np.uint32)
    others = np.float32([np.inf, -np.inf, np.nan, 65519, 65520, 3.4e38, 1e30, -1e-30, 0, -0.0])
    floats = np.concatenate([bits.view(np.float32), others])
    floats = np.resize(floats, -(-floats.size // LANES) * LANES)
    narrowed = np.empty(floats.size, memory.dtype)
    convert(floats, narrowed)
    expected = torch.from_numpy(floats).to(dtype)
    actual = torch.from_numpy(narrowed).view(dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    signs = (numbers[~expected.isnan()].signbit() for numbers in (actual, expected))
    assert torch.equal(*signs)


BOUNDS_CHECKED = """
import sys, numba, numpy, pytest
from numba_pool.cpu import simd

@numba.njit
def read(array, i):
    return simd.reduce_add(simd.load(simd.splat(array, 0.0, 16), array, i))

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
    printed = spawn(BOUNDS_CHECKED, ROOT / "tests/cpu/test_kernels.py", NUMBA_BOUNDSCHECK=1, NUMBA_CACHE_DIR=tmp_path)
    assert f"{len(CASES)} passed" in printed


AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt",
}
WITH_AVX2 = """
import sys, pytest
raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1], "-k", "reference or conversion"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not get_host_cpu_features().get("avx2"), reason="this processor has no AVX2")
def test_kernels_with_avx2_alone(tmp_path):
    """Most processors have no more; LLVM makes other code of the same vectors."""
    printed = spawn(WITH_AVX2, ROOT / "tests/cpu/test_kernels.py", NUMBA_CACHE_DIR=tmp_path, **AVX2)
    assert f"{len(CASES) * len(ENCODINGS) + 2} passed" in printed
