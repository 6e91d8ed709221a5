"""The CPU kernels: tensors in, a tensor filled.

Both directions are one computation, the sum over windows.
The forward averages the windows of the input.
The backward sums, for every element of the input, over the outputs whose windows hold it; these form a window too, by
the same formula with the sizes' roles swapped.
There each gradient counts by its share, one over the area of its window.
So a kernel speaks of `src` and `dst`, whatever the direction, and is told nothing but sizes.

============ ================ ================== =================================================================
way          memory order     windows            what it does
============ ================ ================== =================================================================
`runs`       contiguous       runs of memory     adds up or fills a run, sixteen elements at a time
`planes`     contiguous       small planes       turns planes into lanes, pools them as pixels, turns them back
`lines`      contiguous       all others         adds up rows, turns lines of sums into lanes, pools, turns back
`pixels`     channels_last    16 channels and up pools pixels: every lane has a channel
`parts`      any              very large         adds up what the others leave of windows that were cut into parts
============ ================ ================== =================================================================

Pixels of fewer than sixteen channels are pooled as `lines`.
"""

from numba import config

from . import interpreted, runtime
from .lines import pool_lines
from .parts import add_parts
from .pixels import pool_pixels
from .planes import pool_planes
from .runs import spread_runs, sum_runs
from .runtime import Sizes, keep_compiled, run
from .simd import LANES

# A window of more elements is cut into parts of about so many: a chain of additions stays short, and every thread
# finds work. A part has no more rows than this, unless rows are pixels.
PART = 4096
PART_ROWS = 128
PART_PIXELS = 1024

# Planes with no more elements, input and output together, are turned as they are, if so few of their rows and elements
# on average belong to a line of results.
SMALL = 2048
FEW_ROWS = 16
FEW = 128

# Elements for each thread, below which another thread costs more than it gains: case "doc 32 to 1", with half as many,
# takes 17 us on two threads and 11 on one.
GRAIN = 131072


def forward(src, dst, tensor_type, planes, H, W, oH, oW, C, threads):
    """Fill `dst`, planes of ``(oH, oW)`` pixels, with the averages of `src`, planes of ``(H, W)`` pixels.

    Parameters
    ----------
    src, dst : torch.Tensor
        Contiguous in memory, pixel after pixel, not empty.
    tensor_type : FlatTensor
        What they are to compiled code.
    planes : int
        How many planes lie one after the other: ``N * C`` for contiguous tensors, ``N`` for channels_last.
    H, W, oH, oW : int
        Sizes of a plane, in pixels, all at least 1.
    C : int
        Channels of a pixel: 1 for contiguous tensors.
    threads : int
        The most threads to use.
    """
    _pool(src, dst, tensor_type, threads, *choose(planes, H, W, oH, oW, C, 1))


def backward(src, dst, tensor_type, planes, H, W, oH, oW, C, threads):
    """Fill `dst`, the gradient of an input, planes of ``(H, W)`` pixels, from `src`, planes of ``(oH, oW)`` pixels.

    The parameters are those of :func:`forward`.
    """
    _pool(src, dst, tensor_type, threads, *choose(planes, oH, oW, H, W, C, 0))


def _pool(src, dst, tensor_type, threads, kernel, lines, sizes):
    if config.DISABLE_JIT:
        interpreted.pool(src, dst, sizes.average)
        return
    units = lines * sizes.parts
    if threads > 1:
        threads = min(threads, units, 1 + (src.numel() + dst.numel()) // GRAIN)
    if sizes.parts == 1 or kernel is spread_runs:
        run(kernel, src, tensor_type, dst, tensor_type, sizes, units, threads)
    else:
        sums_type = tensor_type.of_sums
        sums = sums_type.empty(units * sizes.dW * sizes.C)
        run(kernel, src, tensor_type, sums, sums_type, sizes, units, threads)
        run(add_parts, sums, sums_type, dst, tensor_type, sizes, lines, 1)


def choose(planes, sH, sW, dH, dW, C, average):
    """Choose the way to pool planes of some sizes.

    Parameters
    ----------
    planes : int
        How many planes lie one after the other.
    sH, sW, dH, dW, C, average : int
        As in `Sizes`.

    Returns
    -------
    kernel : dispatcher
        The way's kernel.
    lines : int
        How much work there is: runs, planes or lines of results, each of as many parts.
    sizes : Sizes
        The same memory as the kernel sees it, and how many parts there are.
    """
    if sH == dH == 1:
        sH, sW, dH, dW = sW, 1, dW, 1  # a row is a column
    if dW == 1 and sH % dH == 0:
        # Whole rows are averaged: planes of one window each, which is a run of memory.
        planes, sH, dH = planes * dH, sH // dH, 1
        if C == 1:
            sH, sW = 1, sH * sW
    elif sW == 1 and dH % sH == 0:
        # The same in the other direction.
        planes, dH, sH = planes * sH, dH // sH, 1
        if C == 1:
            dH, dW = 1, dH * dW
    elif sW == dW == C == 1:
        sH, sW, dH, dW = 1, sH, 1, dH  # and a column is a row
    elif sW == dW and sW * C >= LANES:
        sW, dW, C = 1, 1, sW * C  # columns are kept: a row is a pixel
    if C >= LANES:
        if dH == dW == 1:
            sH, sW = sH * sW, 1  # all pixels of a plane are one column
        kernel, lines, rows = pool_pixels, planes * dH, PART_PIXELS if sW == 1 else PART_ROWS
    elif C == sH == dH == dW == 1 and sW >= LANES:
        return sum_runs, planes, Sizes(1, sW, 1, 1, 1, average, -(-sW // PART))
    elif C == sH == sW == dH == 1 and dW >= LANES:
        return spread_runs, planes, Sizes(1, 1, 1, dW, 1, average, -(-dW // PART))
    elif C == 1 and sH * sW + dH * dW <= SMALL and sH <= FEW_ROWS * dH and max(sH * sW // dH, dH * dW // sH) <= FEW:
        return pool_planes, planes, Sizes(sH, sW, dH, dW, C, average, 1)
    else:
        kernel, lines, rows = pool_lines, planes * dH, PART_ROWS
    parts = 1
    if sH > dH:
        height, width = sH // dH + 2 * (sH % dH > 0), sW // dW + 2 * (sW % dW > 0)  # of a window, at most
        parts = min(sH // dH, -(-height // min(rows, max(1, PART // width))))
    return kernel, lines, Sizes(sH, sW, dH, dW, C, average, parts)


def precompile(tensor_type, channels_last):
    """Compile all kernels that tensors of a type and a memory format may reach."""
    if config.DISABLE_JIT:
        return
    sums_type = tensor_type.of_sums
    for kernel in (pool_pixels, pool_lines) if channels_last else (pool_pixels, pool_lines, sum_runs):
        runtime.precompile(kernel, tensor_type, tensor_type)
        runtime.precompile(kernel, tensor_type, sums_type)
    for kernel in () if channels_last else (pool_planes, spread_runs):
        runtime.precompile(kernel, tensor_type, tensor_type)
    runtime.precompile(add_parts, sums_type, tensor_type)


keep_compiled(sum_runs, spread_runs, pool_planes, pool_lines, pool_pixels, add_parts)
