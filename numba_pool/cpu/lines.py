"""Contiguous planes: turn lines into lanes, add up columns, turn back.

A *line* is a row of results, and the lines of all planes lie one after the other in memory.
The kernel takes a group of them at a time, up to 64 side by side, and several deep where they are short:

1. add up the rows of each line's window, element by element, in the order of memory;
2. turn the sums, so that each line has a lane of its own: a column is a pixel now, whose channels are lines;
3. add up the columns of each window, the same for every lane;
4. turn the results back, and write them in the order of memory.

No lane is idle at a row's end, and none looks up where its window begins.
The bits of a line do not depend on the lines beside it.
Pixels of a few channels are as many columns beside each other.
"""

import numpy as np

from .runtime import inline, kernel
from .simd import LANES, WIDE, move, no_unroll, prefetch_write, scratch
from .steps import copy, group_of, invert, pool_windows, round_up, scale_pixels, sum_rows, tables_of, transpose

# Elements of a line that are computed at a time, in the results or in the source.
BLOCK = 4096

# Lines of more elements are turned by sixteen, not by 64, to stay in the second-level cache: 1.2 times as fast (case
# "plane 4096 to 1000").
LONG = 512

# The memory of a line's results is asked for before they are computed, unless it is more than this, in elements: 1.4
# times as fast (case "56 to 7x5", backward).
AHEAD = 1024


@inline
def collect_lines(lo, hi, plane, row, sizes, tops, bottoms, lines, rows, sources):
    """Note which lines of results a group computes: their numbers, their rows, and where their windows begin.

    Lines that have the same window as the one before are copies of it, and are not noted.
    Return how many there are, and the line, plane and row that the next group begins with.
    """
    no_unroll()
    n, pitch = 0, sizes.sW * sizes.C
    while lo < hi:
        if n == 0 or row == 0 or tops[row] != tops[row - 1] or bottoms[row] != bottoms[row - 1]:
            if n == rows.size:
                break
            lines[n], rows[n], sources[n] = lo, row, (plane * sizes.sH + tops[row]) * pitch
            n += 1
        lo, row = lo + 1, row + 1
        if row == tops.size:
            plane, row = plane + 1, 0
    lines[n] = lo
    return n, lo, plane, row


@inline
def write_lines(src, n, results, dst, lines, first, length):
    """Write computed lines, `results` elements each, and copies of them, to element `first` of lines of `length`."""
    no_unroll()
    for j in range(n):
        to = lines[j] * length + first
        copy(src, j * results, dst, to, results)
        if results < length:
            for line in range(lines[j] + 1, lines[j + 1]):
                move(dst, to, line * length + first, results)
        else:
            # The copies are one run of memory: short lines are copied several at once.
            done, some, end = results, results, (lines[j + 1] - lines[j]) * results
            while done < end:
                move(dst, to, to + done, min(some, end - done))
                done += some
                if done <= AHEAD:
                    some = done


@inline
def block_of(sW, dW, C):
    """Return how many columns of results are computed at a time, and the most elements that they and their source have.

    All of them, or as many as have a source of no more than a block.
    """
    columns = max(1, BLOCK // C)
    if max(sW, dW) <= columns:
        return dW, max(sW, dW) * C
    columns = max(1, min(columns, (columns - 2) * dW // sW))
    return columns, max(columns, columns * sW // dW + 2) * C


@kernel
def pool_lines(src, dst, sizes, lo, hi):
    """Fill the lines `lo` to `hi` of `dst`."""
    no_unroll()
    _, sW, _, dW, C, average, _ = sizes
    tops, bottoms, heights, starts, ends, widths, weight, row_shares, shares = tables_of(src, sizes)
    invert(row_shares)
    invert(shares)

    columns, length = block_of(sW, dW, C)
    most, size = group_of(hi - lo, WIDE if length <= LONG else LANES, length)
    a, b = scratch(src, size * length + WIDE * LANES * C), scratch(src, size * length + WIDE * LANES * C)
    lines, rows, sources = np.empty(size + 1, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    line_heights = scratch(src, size * C)
    line_heights[:] = 1  # of lanes without a line
    plane, row = lo // tops.size, lo % tops.size
    while lo < hi:
        begin = lo
        n, lo, plane, row = collect_lines(lo, hi, plane, row, sizes, tops, bottoms, lines, rows, sources)
        lanes = min(most, round_up(n, LANES))
        deep = (n + lanes - 1) // lanes
        if weight == 0:  # else nothing is divided by a height
            for j in range(n):
                for c in range(C):
                    line_heights[(j % deep * C + c) * lanes + j // deep] = heights[rows[j]]

        for first in range(0, dW, columns):
            last = min(dW, first + columns)
            width, results = ends[last - 1] - starts[first], (last - first) * C
            for j in range(n):
                i, top = sources[j] + starts[first] * C, tops[rows[j]]
                sum_rows(src, i, sW * C, bottoms[rows[j]] - top, width * C, row_shares, top, False, a, j * width * C)
                if (lines[j + 1] - lines[j]) * dW * C <= AHEAD:
                    for to in range(lines[j] * dW * C, lines[j + 1] * dW * C, LANES):
                        prefetch_write(dst, to)
            # Lanes without a line are computed with, too: whatever memory holds might be slow numbers.
            a[n * width * C : lanes * deep * width * C] = 0
            transpose(a, 0, lanes, deep * width * C, deep * width * C, b, 0, lanes)
            for q in range(deep):
                i, to, h = q * width * C * lanes, q * results * lanes, q * C * lanes
                if average == 0:
                    scale_pixels(b, i, width, C * lanes, shares, starts[first])
                pool_windows(
                    b, i, 1, 1, starts, ends, first, last, C * lanes, weight, line_heights, h, 1, widths, a, to
                )
            # Turning writes up to 15 elements more than what is asked for: those must be results still to come.
            if lo - begin == n and columns == dW and (hi - lo) * dW * C >= LANES:
                transpose(a, 0, deep * results, lanes, lanes, dst, begin * results, deep * results)
            else:
                transpose(a, 0, deep * results, lanes, lanes, b, 0, deep * results)
                write_lines(b, n, results, dst, lines, first * C, dW * C)
