"""Which kernel pools planes of some sizes, on how many blocks, and what it is told.

A few operations on integers answer that, and nothing is kept: a size that never came before costs what any other does.

Kernel and arguments, and with them the order of every sum, follow from the sizes alone.
Only how lines are dealt out to blocks follows the device and the batch too.
"""

from math import gcd
from typing import NamedTuple

from .limits import ITEMSIZE, LIMITS, full_width, shared_size, strip_columns, sum_dtype


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes
    ----------
    kernel : str
        Its name.
    options : tuple of int
        What it is compiled for, besides type and direction: the elements of a pack, where it can do with several.
    blocks : int
        How many blocks it has work for.
    arguments : tuple of int
        What it is told, after the addresses of source and destination.
    """

    kernel: str
    options: tuple[int, ...]
    blocks: int
    arguments: tuple[int, ...]


def choose(
    dtype, backward, planes, sH, sW, dH, dW, C=1, src_shift=0, dst_shift=0, processors=132, limits=LIMITS
) -> tuple[tuple[Launch, ...], int]:
    """Choose the launches that pool planes of ``(sH, sW)`` to planes of ``(dH, dW)``.

    Parameters
    ----------
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Type of source and destination.
    backward : bool
        Whether the source is a gradient, whose elements are divided by the areas of their windows, or an input, the
        sums of whose windows are.
    planes : int
        How many planes lie one after the other: ``N * C`` for contiguous tensors, ``N`` for channels_last.
    sH, sW, dH, dW : int
        Sizes of a plane, in elements (channels_last: pixels), all at least 1.
    C : int
        Channels of a pixel: 1 for contiguous tensors.
    src_shift, dst_shift : int
        Where the first element lies in its 16 bytes: ``address % 16 // itemsize``.
    processors : int
        How many multiprocessors the device has; they change how work is dealt out, never a bit of the result.
    limits : BlockLimits
        What a block has.

    Returns
    -------
    launches : tuple of Launch
        One from source to destination; or two, the first from the source to scratch memory, where it leaves the parts
        of windows that blocks share, the second from there to the destination.
    scratch_bytes : int
        How much scratch memory that takes; 0 for one launch.
    """
    if C == 1 and sW == dW == 1:
        # A column is a row that stands upright, and rows are what the kernels read fast.
        sH, sW, dH, dW = 1, sH, 1, dH
    if C == 1 and sW == 1 and dH % sH == 0:
        # Every source element is spread over rows of its own, which lie one after the other: one row, to the kernels.
        planes, sH, dH, dW = planes * sH, 1, 1, dH // sH * dW
    sizes = planes * dH, sH, dH, sW, dW
    windows = longest_window(dH, sH), longest_window(dW, sW)
    if C == 1:
        plan = _choose_tiles(dtype, backward, sizes, windows, src_shift, dst_shift, processors, limits)
        aligned = sW % full_width(dtype) == src_shift == 0
        return plan or _choose_strips(dtype, sizes, windows, aligned, limits)
    aligned = C % full_width(dtype) == src_shift == dst_shift == 0
    plan = _choose_pixels(dtype, backward, sizes, windows, C, aligned, processors, limits)
    return plan or _choose_bundles(dtype, sizes, windows, C, aligned, limits)


def longest_window(size, other_size, count=1):
    """Return the most elements that the windows of `count` neighboring indices hold together.

    The remainder of ``i * other_size / size`` is a multiple of the sizes' common divisor, so at most `size` less that.
    """
    return (size - gcd(size, other_size) + count * other_size + size - 1) // size


def most_neighbors(size, other_size, length):
    """Return the largest `count` for which :func:`longest_window` is at most `length`: 0 or less if there is none."""
    return ((length - 1) * size + gcd(size, other_size)) // other_size


def lanes_for(kw, limits):
    """Return how many threads share the sum along a window's columns: 1 for a short one, then one for four columns."""
    return 1 if kw < 8 else min(limits.warp, power_of_two(kw // 4))


def power_of_two(number):
    """Return the largest power of two that is at most `number`."""
    return 1 << (number.bit_length() - 1)


def _choose_tiles(dtype, backward, sizes, windows, src_shift, dst_shift, processors, limits):
    """Return the plan for ``tiles``, or None where windows are too large for a block's shared memory."""
    (lines, sH, dH, sW, dW), (kh, kw) = sizes, windows
    slack = full_width(dtype) - 1
    size = shared_size(dtype, limits) - slack

    def most_lines(across):
        """Return how many lines of `across` outputs fit in shared memory: what they need, and their sums."""
        columns = longest_window(dW, sW, across)
        if across > limits.columns or (backward and columns > limits.columns):
            return 0
        pitch, out_pitch = (sW, dW) if across == dW else (columns + slack, across + slack)
        # ``count`` lines have at least ``(count * sH + dH - gcd(dH, sH)) / dH`` source rows, and less than one more.
        most_with_rows = (size * dH - pitch * (dH - gcd(dH, sH))) // (sH * pitch + dH * columns)
        count = min(limits.lines, size // (out_pitch + columns), most_with_rows)
        if backward:
            count = min(count, most_neighbors(dH, sH, limits.lines))
        while count > 0 and longest_window(dH, sH, count) * pitch + count * columns > size:
            count -= 1
        return count

    # Whole rows if four lines fit; else, if windows are low, the broadest tile of columns in which four lines fit, or
    # one line.
    across, most = dW, most_lines(dW)
    if most < 4:
        if kh > 8:
            return None
        breadths = [limits.columns >> k for k in range(6) if 0 < limits.columns >> k < dW]
        for least, across in [
            *((4, breadth) for breadth in breadths),
            *((1, breadth) for breadth in breadths),
            (1, dW),
        ]:
            most = most_lines(across)
            if most >= least:
                break
        else:
            return None
    tiles = -(-dW // across)
    # As many lines as shared memory holds, but not so many that multiprocessors stay idle.
    group = min(most, max(1, lines * tiles // (4 * processors)))
    arguments = *sizes, group, across, tiles, lanes_for(kw, limits), src_shift, dst_shift
    return (Launch("tiles", (), -(-lines // group) * tiles, arguments),), 0


def _choose_strips(dtype, sizes, windows, aligned, limits):
    """Return the plan for ``strips``, which takes windows of any size."""
    (lines, _, _, sW, dW), (kh, kw) = sizes, windows
    full, reach = full_width(dtype), strip_columns(dtype, limits)
    # As many outputs side by side as the block reaches, shared out evenly over the tiles.
    across = max(1, min(dW, 4 * limits.threads, most_neighbors(dW, sW, reach)))
    across = -(-dW // -(-dW // across))
    tiles = -(-dW // across)
    column_parts = -(-kw // reach) if across == 1 else 1
    columns = min(longest_window(dW, sW, across), reach)
    row_parts = -(-kh * columns // limits.part_elements)
    part_rows = -(-kh // row_parts)
    row_parts = -(-kh // part_rows)
    # The first column may lie anywhere in its pack, unless it is the first of the row.
    packs = -(-columns // full) if across == dW and column_parts == 1 else -(-(columns + full - 1) // full)
    arguments = *sizes, across, packs, lanes_for(kw, limits), part_rows, row_parts, column_parts
    parts = row_parts * column_parts
    strips = Launch("strips", (full if aligned else 1,), lines * parts * tiles, arguments)
    return _with_finish(strips, dtype, parts, sizes, 1, limits)


def _choose_pixels(dtype, backward, sizes, windows, C, aligned, processors, limits):
    """Return the plan for ``pixels``, or None where a window is too large for one thread."""
    (lines, sH, dH, sW, dW), (kh, kw) = sizes, windows
    # Outputs of one block, counted as if packs were full, so that the choice does not depend on alignment.
    outputs = min(dW, limits.threads // max(1, C // full_width(dtype)) + 2)
    if kh * kw > 16 or (backward and longest_window(dW, sW, outputs) > limits.columns):
        return None
    width = full_width(dtype) if aligned else 1
    tiles = -(-dW * (C // width) // limits.threads)
    group = min(32, limits.lines, max(1, lines * tiles // (16 * processors)))
    if backward:
        group = min(group, most_neighbors(dH, sH, limits.lines))
    arguments = *sizes, C, group
    return (Launch("pixels", (width,), -(-lines // group) * tiles, arguments),), 0


def _choose_bundles(dtype, sizes, windows, C, aligned, limits):
    """Return the plan for ``bundles``, which takes windows of any size."""
    full = full_width(dtype)
    (lines, *_, dW), (kh, kw) = sizes, windows
    area = kh * kw
    packs = -(-C // full)
    nx = -(-packs // -(-packs // limits.warp))
    parts = -(-area * nx * full // limits.part_elements)
    part_pixels = -(-area // parts)
    parts = -(-area // part_pixels)
    arguments = *sizes, C, nx, part_pixels, parts
    bundles = Launch("bundles", (full if aligned else 1,), lines * dW * parts * -(-C // (nx * full)), arguments)
    return _with_finish(bundles, dtype, parts, sizes, C, limits)


def _with_finish(launch, dtype, parts, sizes, C, limits):
    """Return the plan of a launch, and of ``finish`` after it where it leaves several parts of a window."""
    if parts == 1:
        return (launch,), 0
    lines, *plane, dW = sizes
    outputs = lines * dW * C
    lanes = power_of_two(min(limits.threads, -(-parts // 4)))
    finish = Launch("finish", (), -(-outputs * lanes // limits.threads), (outputs, parts, lanes, C, *plane, dW))
    return (launch, finish), parts * outputs * ITEMSIZE[sum_dtype(dtype)]
