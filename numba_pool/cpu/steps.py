"""The steps that the CPU kernels are made of: add up rows, turn, add up columns.

A *pixel* is what lies side by side and is treated alike: the channels of a channels_last tensor, or the lanes that
turning has laid side by side.
"""

import numpy as np

from .. import windows
from .runtime import inline, inline_with_arrays
from .simd import (
    LANES,
    WIDE,
    as_sum,
    load,
    load_first,
    no_unroll,
    scratch,
    splat,
    splat_like,
    store,
    store_first,
    transpose_tile,
)

# Rows are added this many at a time, and pixels of a window too: chains of additions stay short, so that little is
# rounded away; and more rows would be more streams of memory than the hardware foresees.
ROWS = 8
CHAIN = 16

# Elements of a group of lines or planes that are turned: few enough to stay in a core's first-level cache.
GROUP = 4096

start_index = inline(windows.start_index)
end_index = inline(windows.end_index)


@inline
def round_up(n, unit):
    """Return the next multiple of `unit`."""
    return (n + unit - 1) // unit * unit


@inline
def part_of(start, length, part, parts):
    """Return where a part starts and ends: one of `parts` of `length` elements, as long as each other or nearly."""
    if parts == 1:
        return start, start + length  # divisions would take longer than a short run
    return start + part * length // parts, start + (part + 1) * length // parts


@inline_with_arrays
def windows_of(src, size, source_size, parts):
    """Return where the windows of `size` results start and end in `source_size` elements, and how long they are.

    Each window is cut into `parts`, one after the other.
    The lengths are numbers of the type that `src` is accumulated in.
    """
    no_unroll()
    starts, ends = np.empty(size * parts, np.int64), np.empty(size * parts, np.int64)
    lengths = scratch(src, size * parts)
    for o in range(size):
        start = start_index(o, size, source_size)
        length = end_index(o, size, source_size) - start
        for part in range(parts):
            p = o * parts + part
            starts[p], ends[p] = part_of(start, length, part, parts)
            lengths[p] = ends[p] - starts[p]
    return starts, ends, lengths


@inline
def weight_of(sizes, heights, widths):
    """Return what sums are multiplied by, or 0 where each is divided by the area of its window.

    Dividing is exact, but takes sixteen times as long as multiplying.
    Where the area of all windows is the same power of two, multiplying by one over it is exact too.
    Parts of windows are only added up, and so are elements that count by their shares.
    """
    no_unroll()
    if sizes.average == 0 or sizes.parts > 1:
        return 1.0
    height, width = heights[0], widths[0]
    area = np.int64(height * width)
    different = area & (area - 1)
    for o in range(heights.size):
        different |= heights[o] != height
    for o in range(widths.size):
        different |= widths[o] != width
    return 0.0 if different else 1.0 / area


@inline_with_arrays
def tables_of(src, sizes):
    """Return what a kernel works out from its sizes.

    Where the windows of the rows start and end, each cut into parts, and their heights; the same of the columns; what
    sums are multiplied by, as `weight_of` says; and where elements count by their shares, over how many rows, and how
    many columns, each row and column of the source is spread.
    """
    one = np.int64(1)  # a literal 1 would be compiled for again
    tops, bottoms, heights = windows_of(src, sizes.dH, sizes.sH, sizes.parts)
    starts, ends, widths = windows_of(src, sizes.dW, sizes.sW, one)
    weight = as_sum(src, weight_of(sizes, heights, widths))
    _, _, row_spreads = windows_of(src, (one - sizes.average) * sizes.sH, sizes.dH, one)
    _, _, column_spreads = windows_of(src, (one - sizes.average) * sizes.sW, sizes.dW, one)
    return tops, bottoms, heights, starts, ends, widths, weight, row_spreads, column_spreads


@inline
def group_of(count, most, length):
    """Return the lanes of a group, `most` at most, and how many units of `length` elements it takes of `count`."""
    lanes = min(most, round_up(count, LANES))
    return lanes, min(max(lanes, GROUP // length // lanes * lanes), round_up(count, lanes))


@inline
def invert(lengths):
    """Turn lengths of windows into the share by which an element counts, which is spread evenly over its window."""
    no_unroll()
    for i in range(lengths.size):
        lengths[i] = 1.0 / lengths[i]


@inline
def add_rows(like, src, i, pitch, rows, shares, row):
    """Return the sum of `rows` vectors, `pitch` elements apart, each times its share; there may be no shares."""
    no_unroll()
    s = load(like, src, i)
    if shares.size > 0:
        s = s * splat_like(like, shares[row])
        for r in range(1, rows):
            s = s + load(like, src, i + r * pitch) * splat_like(like, shares[row + r])
    else:
        for r in range(1, rows):
            s = s + load(like, src, i + r * pitch)
    return s


@inline
def add_short_rows(like, src, i, pitch, rows, shares, row, n):
    """Do what `add_rows` does for the first `n` lanes."""
    no_unroll()
    s = splat_like(like, 0.0)
    for r in range(rows):
        t = load_first(like, src, i + r * pitch, n)
        if shares.size > 0:
            t = t * splat_like(like, shares[row + r])
        s = s + t
    return s


@inline
def sum_rows(src, first, pitch, rows, length, shares, row, more, sums, to):
    """Set ``sums[to : to + length]`` to the sum of `rows` rows, `pitch` elements apart, each times its share.

    If `more`, add the sum to what is there.
    Up to 15 elements behind are overwritten, and so many behind the rows are read, if there are.
    """
    no_unroll()
    wide, narrow = splat(sums, 0.0, WIDE), splat(sums, 0.0, LANES)
    for d in range(0, rows, ROWS):
        n = min(ROWS, rows - d)
        i = first + d * pitch
        left = src.size - i - (n - 1) * pitch
        c = 0
        while c + WIDE < length + LANES and c + WIDE <= left:
            s = add_rows(wide, src, i + c, pitch, n, shares, row + d)
            if more or d > 0:
                s = s + load(wide, sums, to + c)
            store(sums, to + c, s)
            c += WIDE
        while c < length:
            if c + LANES <= left:
                t = add_rows(narrow, src, i + c, pitch, n, shares, row + d)
            else:
                t = add_short_rows(narrow, src, i + c, pitch, n, shares, row + d, length - c)
            if more or d > 0:
                t = t + load(narrow, sums, to + c)
            store(sums, to + c, t)
            c += LANES


@inline
def transpose(src, i, height, width, pitch, dst, to, dst_pitch):
    """Set ``dst[to + c * dst_pitch + r]`` to ``src[i + r * pitch + c]``, for `r` < `height` and `c` < `width`.

    Up to 15 elements behind each row of `dst` are overwritten, so these are written in the order of memory, each from
    its end.
    """
    no_unroll()
    for c in range(0, width, LANES):
        r = (height - 1) // LANES * LANES
        for n in range(0, height, LANES):
            transpose_tile(src, i + r * pitch + c, pitch, dst, to + c * dst_pitch + r, dst_pitch)
            r = n


@inline
def scale_pixels(pixels, first, count, inner, shares, share):
    """Multiply `count` pixels, of `inner` numbers each, by their shares."""
    no_unroll()
    narrow = splat(pixels, 0.0, LANES)
    for p in range(count):
        factor = splat_like(narrow, shares[share + p])
        i = first + p * inner
        end = i + inner
        while i + LANES <= end:
            store(pixels, i, load(narrow, pixels, i) * factor)
            i += LANES
        if i < end:
            store_first(pixels, i, load_first(narrow, pixels, i, end - i) * factor, end - i)


@inline
def sum_few(like, src, i, pitch, rows, inner, count):
    """Return the sum of a few rows of a few pixels, for as many of their numbers as `like` has lanes."""
    no_unroll()
    s = splat_like(like, 0.0)
    for first in range(i, i + rows * pitch, pitch):
        t = load(like, src, first)
        for a in range(first + inner, first + count * inner, inner):
            t = t + load(like, src, a)
        s = s + t
    return s


@inline
def sum_window(like, src, i, pitch, rows, inner, count):
    """Do what `sum_few` does for windows of any width.

    Sums of a few pixels are added to a sum, every sixteen of these to another one, and so on: no chain of additions is
    long, and little is rounded away.
    """
    no_unroll()
    if count <= CHAIN:
        return sum_few(like, src, i, pitch, rows, inner, count)
    zero = splat_like(like, 0.0)
    s, t, u, v = zero, zero, zero, zero
    for j in range(0, count, CHAIN):
        s = s + sum_few(like, src, i + j * inner, pitch, rows, inner, min(CHAIN, count - j))
        done = j // CHAIN + 1
        if done % 16 == 0:
            t, s = t + s, zero
        if done % 256 == 0:
            u, t = u + t, zero
        if done % 4096 == 0:
            v, u = v + u, zero
    return v + (u + (t + s))


@inline
def weigh(s, weight, height, width):
    """Return a sum multiplied by its weight, or divided by its area if the weight is 0."""
    return s / (height * splat_like(s, width)) if weight == 0 else s * splat_like(s, weight)


@inline
def pool_windows(src, i, pitch, rows, starts, ends, first, last, inner, weight, heights, h, step, widths, dst, to):
    """Pool the columns `first` to `last` of one row of windows of pixels, each of `inner` numbers.

    Element `i` of `src` is the first of the window of column `first`; its rows are `pitch` elements apart.
    A sum is multiplied by `weight`, or divided by its area if that is 0: the width of its column times, for number `c`
    of a pixel, ``heights[h + c * step]``.
    There are at least 16 numbers; the last 16 are computed at once, some of them again.
    """
    no_unroll()
    wide, narrow = splat(dst, 0.0, WIDE), splat(dst, 0.0, LANES)
    for ow in range(first, last):
        count = ends[ow] - starts[ow]
        a = i + (starts[ow] - starts[first]) * inner
        c = 0
        while c + WIDE <= inner:
            s = sum_window(wide, src, a + c, pitch, rows, inner, count)
            store(dst, to + c, weigh(s, weight, load(wide, heights, h + c * step), widths[ow]))
            c += WIDE
        while c < inner:
            c = min(c, inner - LANES)
            t = sum_window(narrow, src, a + c, pitch, rows, inner, count)
            store(dst, to + c, weigh(t, weight, load(narrow, heights, h + c * step), widths[ow]))
            c += LANES
        to += inner


@inline
def copy(src, i, dst, to, n):
    """Set ``dst[to : to + n]`` to ``src[i : i + n]``."""
    no_unroll()
    wide, narrow = splat(src, 0.0, WIDE), splat(src, 0.0, LANES)
    c = 0
    while c + WIDE <= n:
        store(dst, to + c, load(wide, src, i + c))
        c += WIDE
    while c + LANES <= n:
        store(dst, to + c, load(narrow, src, i + c))
        c += LANES
    if c < n:
        store_first(dst, to + c, load_first(narrow, src, i + c, n - c), n - c)
