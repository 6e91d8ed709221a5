"""What the CUDA tests share: pooling arrays in the simulator, and the check that every kernel has to pass."""

from typing import Any

import numpy as np

from numba_pool import reference
from numba_pool.cuda import kernels
from numba_pool.cuda.limits import LIMITS
from numba_pool.cuda.plan import choose

# A block so small that little arrays reach every branch: tiles of columns, groups of lines, parts of windows.
SMALL = LIMITS._replace(threads=16, shared_bytes=768, lines=12, columns=24, part_elements=200, warp=16)

# How far a result may be from the exact one, in units of the largest sum of absolute values.
TOLERANCE = {"float64": 1e-14, "float32": 5e-7, "float16": 1e-3, "bfloat16": 8e-3}
PLAIN: dict[str, Any] = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.float32}


def encode(values, dtype):
    """Return `values` as the kernels see them in memory: halves as 16-bit integers."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    values = np.ascontiguousarray(values, PLAIN[dtype])
    return values.view(np.int16) if dtype == "float16" else values


def decode(memory, dtype):
    """Return the numbers that `memory` holds, in float64."""
    if dtype == "bfloat16":
        return (memory.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return (memory.view(np.float16) if dtype == "float16" else memory).astype(np.float64)


def make_input(shape, dtype, seed=0):
    """Return random numbers that `dtype` holds exactly, in float64."""
    return decode(encode(np.random.default_rng(seed).standard_normal(shape), dtype), dtype)


def pool(
    values, sizes, dtype="float32", backward=False, channels_last=False, shifts=(0, 0), limits=SMALL, processors=1
):
    """Pool an array ``(N, C, …, …)`` in the simulator; return the result and the kernels' names.

    `sizes` is ``(H, W, oH, oW)``.
    """
    N, C = values.shape[:2]
    H, W, oH, oW = sizes
    height, width = (H, W) if backward else (oH, oW)
    planes, channels = (N, C) if channels_last else (N * C, 1)
    launches, scratch_bytes = choose(
        dtype, backward, planes, *values.shape[2:], height, width, channels, *shifts, processors, limits
    )
    memory = encode(values.transpose(0, 2, 3, 1) if channels_last else values, dtype).reshape(-1)
    # The memory around both arrays is filled with what would be noticed: NaN (in bits), for sources and for results.
    nan = encode(np.full(1, np.nan), dtype) if dtype != "bfloat16" else np.array([0x7FC0], np.uint16)
    src = np.concatenate([np.repeat(nan, shifts[0]), memory])
    size = N * C * height * width
    dst = np.repeat(nan, shifts[1] + size + 8)
    sums = np.float64 if dtype == "float64" else np.float32
    scratch = np.full(scratch_bytes // np.dtype(sums).itemsize, np.nan, sums)
    compiled = [kernels.compiled(launch.kernel, launch.options, dtype, backward, limits) for launch in launches]
    kernels.run(compiled, launches, src[shifts[0] :], dst[shifts[1] : shifts[1] + size], scratch, limits=limits)
    around = np.concatenate([dst[: shifts[1]], dst[shifts[1] + size :]])
    assert around.tobytes() == np.repeat(nan, len(around)).tobytes(), "a kernel wrote beside its result"
    result = decode(dst[shifts[1] : shifts[1] + size], dtype)
    if channels_last:
        result = result.reshape(N, height, width, C).transpose(0, 3, 1, 2)
    return result.reshape(N, C, height, width), [launch.kernel for launch in launches]


def expected(values, sizes, backward=False):
    """Return the exact result, and the scale of its rounding errors: the result for the absolute values."""
    H, W, oH, oW = sizes
    if backward:
        return tuple(reference.backward(v, (H, W)) for v in (values, abs(values)))
    return tuple(reference.forward(v, (oH, oW)) for v in (values, abs(values)))


def check(result, values, sizes, dtype="float32", backward=False):
    """Raise AssertionError unless every element of `result` is as near to the exact one as `dtype` allows."""
    want, scale = expected(values, sizes, backward)
    error = np.abs(result - want)
    bound = TOLERANCE[dtype] * scale + np.finfo(PLAIN[dtype]).tiny
    if not (error <= bound).all():  # so that a NaN fails
        at = np.unravel_index(np.argmax(np.nan_to_num(error - bound, nan=np.inf)), error.shape)
        raise AssertionError(f"{at}: {result[at]}, expected {want[at]} ± {bound[at]}")
