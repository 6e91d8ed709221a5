"""The CPU kernels: flat arrays in, flat arrays filled.

Both directions are one computation, the sum over windows.
The forward sums the windows of the input and divides each sum by its window's area.
The backward sums, for every element of the input, over the outputs whose windows hold it; these form a window too, by
the same formula with the sizes' roles swapped.
There each gradient counts by its share, one over the area of its window.

So a kernel speaks of `src` and `dst`, whatever the direction: flat views of contiguous memory, ``(planes, H, W,
inner)`` and ``(planes, oH, oW, inner)``.
A contiguous tensor has ``planes = N * C`` and ``inner = 1``, a channels_last one ``planes = N`` and ``inner = C``.

Rows come first: the rows of a window are added up element by element, which needs no tables and reads memory in its
order.
Then the columns of the sums, which lie in the first-level cache.

Work comes in jobs.
Job `j` adds up the rows ``top[j]`` to ``top[j] + height[j]`` of a plane, for the rows ``target[j]`` to
``target[j + 1]`` of `dst`: several, where neighbouring outputs have the same window.
Jobs are independent, and each one's order of summation depends on the sizes alone; threads share them out as they like.

Small planes go another way: they are transposed, so that each lane has a plane of its own.
"""

from functools import lru_cache

import numpy as np
from numba import intp, njit, prange, typeof
from numba.np.numpy_support import as_dtype

from .._cache import compiled, keep_compiled
from .._threads import run_in_pool
from ..windows import pooling_windows
from .simd import LANES, add_pairs, fill, get, load, pick, prefetch, put, rolled, scratch, store, total, transpose_tile

# A window of more elements, rows or pixels in a run is cut into pieces, one job each: a chain of additions stays short,
# and every thread finds work.
PIECE = 4096
PIECE_ROWS = 128
PIECE_RUN = 1024

# Rows are added this many at a time: more would be more streams of memory than the hardware foresees.
ROWS = 8

# Long rows of arrays too large for the caches are asked for this many elements ahead: the hardware does so only along
# each of the rows, and begins anew with each. Without it, pooling 300 columns to 75 takes up to 2.3 times as long.
AHEAD = 4096
LONG_ROW = 80
LARGE = 1 << 22

# And runs of arrays twice as large, this many ahead: 15 % faster. Smaller arrays would lose as much.
AHEAD_RUN = 1024

# Pixels of a wide window are added this many at a time, for the same short chains.
PIXELS = 16

# Windows this narrow are summed sixteen at a time, wider ones one by one.
NARROW = 8

# The row sums that wait for their windows, in elements: few enough to stay in a core's first-level cache.
SLAB = 1024

# Other planes of fewer elements are worked on together, up to this many elements: what is done once for a row or a
# plane, rather than for an element, is most of their cost.
PACK = 2048

# Rows of two registers and more are copied, not worked on together, if so many on average have the same window.
COPIES = 4

# Elements per thread below which a second thread costs more than it gains: in `sum_windows`, and in the other kernels,
# most of which are faster.
GRAIN = 32768
FAST_GRAIN = 131072

# Rows of results that are the same are one job as long as they have no more elements: every thread shall find work.
SHARED = 1 << 18

# Neighbouring pixels of a result are computed once if so many elements are the same, and copied so many at a time.
REPEATED = 1024

# Planes that have no more than `SMALL` elements, input and output together, go side by side, `ABREAST` at a time, if
# their windows are unequal and of no more than `FEW` elements. Larger planes would leave the caches, and few of them
# would leave lanes idle for longer; other windows are summed faster by rows.
SMALL = 384
ABREAST = 128
FEW = 9

# How sums become results. SHARES: each element of `src` is multiplied by its share before it is added.
# AREAS: the sum is divided by the window's area. FACTORS: it is multiplied by one over the area, a power of two, where
# this is the same number and costs less.
SHARES, AREAS, FACTORS = 0, 1, 2

# Without wrappers for other callers, which take half the compile time. And without counting references to tables at
# each call and in each loop, as the kernel holds them anyway: down to two thirds of the time where planes are small.
_part = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
_inline = njit(forceinline=True, **_part)
_apart = njit(**_part)  # called, not taken in: else it would be compiled again in each place
_kernel = njit(nogil=True, error_model="numpy")
_parallel = njit(nogil=True, error_model="numpy", parallel=True)


@_inline
def read(src, i, n):
    """Return sixteen elements of `src`, or the first `n` and zeros; a mask is not for free."""
    return load(src, i, LANES) if n >= LANES else load(src, i, n)


@_inline
def write(dst, i, s, n):
    """Set sixteen elements of `dst`, or the first `n`."""
    if n >= LANES:
        store(dst, i, s, LANES)
    else:
        store(dst, i, s, n)


@_inline
def weigh(s, weight, weighting):
    """Return the result that a sum becomes."""
    if weighting == AREAS:
        return s / weight
    if weighting == FACTORS:
        return s * weight
    return s


@_inline
def copy(src, i, dst, to, n):
    """Set ``dst[to:][:n]`` to ``src[i:][:n]``."""
    for k in range(0, n, LANES):
        write(dst, to + k, read(src, i + k, n - k), n - k)


@_inline
def repeat(dst, to, target, j, length):
    """Copy the first row of the target of job `j` to its other rows, which have the same window."""
    row = to + get(target, j) * length
    for oh in range(get(target, j) + 1, get(target, j + 1)):
        copy(dst, row, dst, to + oh * length, length)


@_apart
def repeat_run(dst, i, run, to, end):
    """Set ``dst[to:end]`` to ``dst[i:][:run]``, again and again."""
    rolled()
    while to < end:
        n = min(run, end - to)
        k = 0
        while k + 4 * LANES <= n:
            s0, s1 = load(dst, i + k, LANES), load(dst, i + k + LANES, LANES)
            s2, s3 = load(dst, i + k + 2 * LANES, LANES), load(dst, i + k + 3 * LANES, LANES)
            store(dst, to + k, s0, LANES)
            store(dst, to + k + LANES, s1, LANES)
            store(dst, to + k + 2 * LANES, s2, LANES)
            store(dst, to + k + 3 * LANES, s3, LANES)
            k += 4 * LANES
        copy(dst, i + k, dst, to + k, n - k)
        to += n


@_inline
def repeat_pixel(dst, i, inner, run, end):
    """Copy the pixel at `i` to those that follow, up to `end`.

    A few, `run` elements, are copied again and again, which stay in the first-level cache, and are written in the order
    of memory: up to 1.8 times as fast as copies of whole rows, or of each pixel to several rows.
    """
    some = min(i + run, end)
    repeat_run(dst, i, inner, i + inner, some)
    repeat_run(dst, i, some - i, some, end)


@_inline
def repeat_pixels(dst, to, targets, j, length, inner, run):
    """Copy the first row of the target of job `j` to its other rows, which have the same windows."""
    down, across = targets
    windows = across.size - 1
    first, last = to + get(down, j) * length, to + get(down, j + 1) * length
    if windows * inner == length:
        repeat_run(dst, first, length, first + length, last)
        return
    for row in range(first + length, last, length):
        for k in range(windows):
            i, end = get(across, k) * inner, get(across, k + 1) * inner
            repeat_run(dst, first + i, run, row + i, row + end)


@_inline
def ask(src, i):
    """Ask for the 64 elements from `i` on, to be read soon."""
    prefetch(src, i)
    prefetch(src, i + LANES)
    prefetch(src, i + 2 * LANES)
    prefetch(src, i + 3 * LANES)


@_inline
def add_rows(src, i, W, height, lanes, ahead):
    """Return the sum, for sixteen columns from element `i` on, of `height` rows of `W` elements.

    From lane `lanes` on, zeros, and memory is not read there.
    Memory is asked for `ahead` elements before it is read, if `ahead` is not 0.
    """
    rolled()
    s = load(src, i, lanes)
    end = i + height * W
    if ahead > 0:
        prefetch(src, i + ahead)
    i += W
    while i < end:
        s = s + load(src, i, lanes)
        if ahead > 0:
            prefetch(src, i + ahead)
        i += W
    return s


@_inline
def sum_rows(src, plane, W, length, jobs, j, n, sums):
    """Add up rows, `W` elements apart, of `n` jobs from `j` on; line up the sums, `length` each, in `sums`.

    A block of sixteen columns is summed in a register.
    Its lanes past a row's end hold what memory has there, and no window takes them.
    """
    rolled()
    top, height = jobs
    ahead = max(ROWS * W, AHEAD) if W >= LONG_ROW and src.size >= LARGE else 0
    for r in range(n):
        for d in range(0, get(height, j + r), ROWS):
            rows = min(ROWS, get(height, j + r) - d)
            first = plane + (get(top, j + r) + d) * W
            last = first + (rows - 1) * W
            for i in range(0, length, LANES):
                if last + i + LANES > src.size:
                    s = add_rows(src, first + i, W, rows, length - i, 0)
                elif ahead > 0:
                    s = add_rows(src, first + i, W, rows, LANES, ahead)
                else:
                    s = add_rows(src, first + i, W, rows, LANES, 0)
                if d > 0:
                    s = s + load(sums, r * length + i, LANES)
                store(sums, r * length + i, s, LANES)


@_apart
def sum_short_rows(src, plane, W, jobs, j, n, sums):
    """Do what `sum_rows` does, for many rows of 33 to 64 elements.

    A row fits four registers, so that planes are read in the order of memory: up to 1.6 times as fast.
    """
    rolled()
    top, height = jobs
    for r in range(n):
        k = r * W
        for d in range(0, get(height, j + r), ROWS):
            i = plane + (get(top, j + r) + d) * W
            end = i + min(ROWS, get(height, j + r) - d) * W
            s0, s1 = load(src, i, LANES), load(src, i + LANES, LANES)
            s2, s3 = load(src, i + 2 * LANES, W - 2 * LANES), load(src, i + 3 * LANES, W - 3 * LANES)
            i += W
            while i < end:
                s0, s1 = s0 + load(src, i, LANES), s1 + load(src, i + LANES, LANES)
                s2 = s2 + load(src, i + 2 * LANES, W - 2 * LANES)
                s3 = s3 + load(src, i + 3 * LANES, W - 3 * LANES)
                i += W
            if d > 0:
                s0, s1 = s0 + load(sums, k, LANES), s1 + load(sums, k + LANES, LANES)
                s2, s3 = s2 + load(sums, k + 2 * LANES, LANES), s3 + load(sums, k + 3 * LANES, LANES)
            store(sums, k, s0, LANES)
            store(sums, k + LANES, s1, LANES)
            store(sums, k + 2 * LANES, s2, LANES)
            store(sums, k + 3 * LANES, s3, LANES)


@_inline
def scale(src, first, n, shares, p, scaled):
    """Set ``scaled[:n]`` to ``src[first:][:n]``, multiplied by their `shares`, which start at `p`."""
    for i in range(0, n, LANES):
        store(scaled, i, read(src, first + i, n - i) * load(shares, p + i, LANES), LANES)


@_inline
def scale_pixels(src, first, n, inner, shares, p, scaled):
    """Set ``scaled[: n * inner]`` to `n` pixels of `src`, multiplied by their `shares`, which start at `p`."""
    for pixel in range(n):
        share = fill(scaled, get(shares, p + pixel))
        for c in range(0, inner, LANES):
            i = pixel * inner + c
            store(scaled, i, read(src, first + i, inner - c) * share, LANES)


@_inline
def pick_windows(sums, W, first, picks, shape, weights, weighting, j, n, target, dst, to, length):
    """Sum narrow windows, `length` of them for each of `n` rows of `sums`, sixteen at a time.

    Windows of an axis have one width or two, one apart; their elements are `step` apart, the channels of a pixel.
    So sums of the narrower width are made for sixteen positions in a row, for as many `registers` as sixteen windows
    span, and each lane picks the one where its window starts; then, if its window is wide, the element that follows.
    """
    rolled()
    start, wide_start = picks
    _, _, _, _, narrowest, widest, registers, step, _ = shape
    for r in range(n):
        row = to + get(target, j + r) * length
        for k in range(0, length, LANES):
            a = r * W + get(first, k)
            s = fill(sums, 0)
            for q in range(0, registers * LANES, LANES):
                t = load(sums, a + q, LANES)
                for d in range(1, narrowest):
                    t = t + load(sums, a + q + d * step, LANES)
                s = pick(s, t, start, k, q)
            if widest > narrowest:
                t = fill(sums, 0)
                for q in range(0, registers * LANES, LANES):
                    t = pick(t, load(sums, a + q + narrowest * step, LANES), wide_start, k, q)
                s = s + t
            if weighting != SHARES:
                s = weigh(s, load(weights, (j + r) * length + k, LANES), weighting)
            write(dst, row + k, s, length - k)
        repeat(dst, to, target, j + r, length)


@_inline
def sum_pairs(sums, i):
    """Return the sums of sixteen pairs of neighbours, from element `i` on."""
    return add_pairs(load(sums, i, LANES), load(sums, i + LANES, LANES))


@_inline
def sum_fours(sums, i):
    """Return the sums of sixteen times four neighbours, from element `i` on."""
    return add_pairs(sum_pairs(sums, i), sum_pairs(sums, i + 2 * LANES))


@_inline
def fold_windows(sums, W, first, picks, shape, weights, weighting, j, n, target, dst, to, length):
    """Do what `pick_windows` does, for windows of two, four or eight elements, one after the other.

    Neighbours are added up in pairs, and these again; of sums from each position on, most would be made for nothing:
    up to 1.8 times as fast. A function of its own, because a choice in the innermost loop of `pick_windows` would take
    5 % more time in the mean.
    """
    rolled()
    start, _ = picks
    _, _, _, _, _, _, registers, _, folded = shape
    for r in range(n):
        row = to + get(target, j + r) * length
        for k in range(0, length, LANES):
            a = r * W + get(first, k)
            s = fill(sums, 0)
            for q in range(0, registers * LANES, LANES):
                if folded == 2:
                    t = sum_pairs(sums, a + 2 * q)
                elif folded == 4:
                    t = sum_fours(sums, a + 4 * q)
                else:
                    t = add_pairs(sum_fours(sums, a + 8 * q), sum_fours(sums, a + 8 * q + 4 * LANES))
                s = pick(s, t, start, k, q)
            if weighting != SHARES:
                s = weigh(s, load(weights, (j + r) * length + k, LANES), weighting)
            write(dst, row + k, s, length - k)
        repeat(dst, to, target, j + r, length)


@_inline
def span(src, first, n, ahead):
    """Return the sum of ``src[first : first + n]``, kept in sixteen lanes until the end.

    Memory is asked for `ahead` elements before it is read, if `ahead` is not 0.
    """
    rolled()
    full = n // LANES * LANES
    s = load(src, first + full, n - full)
    i = 0
    while i + 4 * LANES <= full:
        a = first + i
        if ahead > 0:
            ask(src, a + ahead)
        s = s + (
            (load(src, a, LANES) + load(src, a + LANES, LANES))
            + (load(src, a + 2 * LANES, LANES) + load(src, a + 3 * LANES, LANES))
        )
        i += 4 * LANES
    while i < full:
        s = s + load(src, first + i, LANES)
        i += LANES
    return total(s)


@_inline
def span_windows(sums, W, columns, weights, weighting, j, n, target, dst, to, oW):
    """Sum wide windows, `oW` of them for each of `n` rows of `sums`, one after the other."""
    starts, ends = columns
    for r in range(n):
        for ow in range(oW):
            s = span(sums, r * W + get(starts, ow), get(ends, ow) - get(starts, ow), 0)
            if weighting != SHARES:
                s = weigh(s, get(weights, (j + r) * oW + ow), weighting)
            for oh in range(get(target, j + r), get(target, j + r + 1)):
                put(dst, to + oh * oW + ow, s)


@_inline
def pixel_windows(src, plane, W, inner, jobs, direct, columns, weights, weighting, j, n, targets, dst, to, oW):
    """Sum windows of pixels, a row of them for each of `n` jobs; a pixel is `inner` channels.

    `targets` has the first row of each job and the first column of each window; a result is for all up to the next.
    If `direct`, the windows are those of the jobs from `j` on, and `src` is what is pooled.
    Else `src` holds the jobs' row sums.
    Four registers hold the sums of 64 channels, because each waits for its last addition; of what is left, two hold 32,
    for up to 1.7 times the speed of one after the other.
    """
    rolled()
    tops, heights = jobs
    starts, ends = columns
    down, across = targets
    windows = starts.size
    run = max(1, REPEATED // inner) * inner
    shared = direct and weighting == SHARES
    # Channels in several steps are more streams than the hardware foresees: up to 1.6 times as fast.
    ahead = AHEAD if direct and inner > 4 * LANES and src.size >= LARGE else 0
    for r in range(n):
        top, height = (get(tops, j + r), get(heights, j + r)) if direct else (r, 1)
        row = to + get(down, j + r) * oW * inner
        for k in range(windows):
            start, end = get(starts, k), get(ends, k)
            weight = fill(dst, 1 if weighting == SHARES else get(weights, (j + r) * windows + k))
            at = row + get(across, k) * inner
            c = 0
            while c + 4 * LANES <= inner:
                s0 = s1 = s2 = s3 = fill(dst, 0)
                for iw in range(start, end, PIXELS):
                    t0 = t1 = t2 = t3 = fill(dst, 0)
                    for ih in range(top, top + height):
                        for pixel in range(ih * W + iw, ih * W + min(iw + PIXELS, end)):
                            a = plane + pixel * inner + c
                            x0, x1 = load(src, a, LANES), load(src, a + LANES, LANES)
                            if ahead > 0:
                                ask(src, a + ahead)
                            x2, x3 = load(src, a + 2 * LANES, LANES), load(src, a + 3 * LANES, LANES)
                            if shared:
                                share = fill(dst, get(weights, pixel))
                                x0, x1, x2, x3 = x0 * share, x1 * share, x2 * share, x3 * share
                            t0, t1, t2, t3 = t0 + x0, t1 + x1, t2 + x2, t3 + x3
                    s0, s1, s2, s3 = s0 + t0, s1 + t1, s2 + t2, s3 + t3
                store(dst, at + c, weigh(s0, weight, weighting), LANES)
                store(dst, at + c + LANES, weigh(s1, weight, weighting), LANES)
                store(dst, at + c + 2 * LANES, weigh(s2, weight, weighting), LANES)
                store(dst, at + c + 3 * LANES, weigh(s3, weight, weighting), LANES)
                c += 4 * LANES
            if c + 2 * LANES <= inner:
                s0 = s1 = fill(dst, 0)
                for iw in range(start, end, PIXELS):
                    t0 = t1 = fill(dst, 0)
                    for ih in range(top, top + height):
                        for pixel in range(ih * W + iw, ih * W + min(iw + PIXELS, end)):
                            a = plane + pixel * inner + c
                            x0, x1 = load(src, a, LANES), load(src, a + LANES, LANES)
                            if shared:
                                share = fill(dst, get(weights, pixel))
                                x0, x1 = x0 * share, x1 * share
                            t0, t1 = t0 + x0, t1 + x1
                    s0, s1 = s0 + t0, s1 + t1
                store(dst, at + c, weigh(s0, weight, weighting), LANES)
                store(dst, at + c + LANES, weigh(s1, weight, weighting), LANES)
                c += 2 * LANES
            while c < inner:
                s = fill(dst, 0)
                for iw in range(start, end, PIXELS):
                    t = fill(dst, 0)
                    for ih in range(top, top + height):
                        for pixel in range(ih * W + iw, ih * W + min(iw + PIXELS, end)):
                            x = read(src, plane + pixel * inner + c, inner - c)
                            if shared:
                                x = x * fill(dst, get(weights, pixel))
                            t = t + x
                    s = s + t
                write(dst, at + c, weigh(s, weight, weighting), inner - c)
                c += LANES
            if windows < oW:
                repeat_pixel(dst, at, inner, run, row + get(across, k + 1) * inner)
        repeat_pixels(dst, to, targets, j + r, oW * inner, inner, run)


@_inline
def transpose(src, first, pitch, height, width, dst, to, dst_pitch, ahead):
    """Set ``dst[to + c * dst_pitch + r]`` to ``src[first + r * pitch + c]``, for `r` < `height` and `c` < `width`.

    Memory is asked for `ahead` elements before it is read, if `ahead` is not 0.
    """
    rolled()
    for r in range(0, height, LANES):
        for c in range(0, width, LANES):
            i, k = first + r * pitch + c, to + c * dst_pitch + r
            if ahead > 0:
                for row in range(LANES):
                    prefetch(src, i + ahead + row * pitch)
            if height - r >= LANES and width - c >= LANES:
                transpose_tile(src, i, pitch, LANES, LANES, dst, k, dst_pitch)
            else:
                transpose_tile(src, i, pitch, height - r, width - c, dst, k, dst_pitch)


@_kernel
def sum_runs(src, dst, length, weights, lo, hi):
    """Sum the windows `lo` to `hi`, which are equal runs of memory, one after the other.

    Apart from `sum_windows`, between whose many variables this loop takes 1.3 times as long.
    """
    rolled()
    ahead = AHEAD_RUN if src.size >= 2 * LARGE else 0
    for i in range(lo, hi):
        put(dst, i, span(src, i * length, length, ahead) / get(weights, 0))


@_kernel
def spread_runs(src, dst, length, weights, lo, hi):
    """Fill equal runs of memory, each with one element of `src`, `lo` to `hi`, divided by the area of its window.

    This is what `sum_runs` is in the other direction.
    Picking the element for each place, as `sum_windows` would do, takes up to three times as long.
    """
    rolled()
    for i in range(lo, hi):
        s = fill(dst, get(src, i) / get(weights, 0))
        for k in range(0, length, LANES):
            write(dst, i * length + k, s, length - k)


@_kernel
def sum_windows(src, dst, H, W, oH, oW, jobs, target, columns, first, picks, shape, weights, weighting, lo, hi):
    """Sum the windows of the units of work `lo` to `hi` of contiguous planes: small planes or jobs, as planned."""
    rolled()
    packed, flat, count, tallest, _, widest, registers, step, folded = shape
    short = packed == 0 and tallest >= ROWS and 2 * LANES < W <= 4 * LANES
    slab = packed if packed > 0 else max(1, SLAB // (W * tallest if weighting == SHARES else W))
    slab = min(slab, hi - lo)
    slack = (registers * folded + 4 + step) * LANES
    sums = scratch(src, slab * (max(count, H) if packed > 0 else 1) * W + slack)
    scaled = scratch(src, slab * (H if packed > 0 else tallest) * W + slack if weighting == SHARES else 0)
    while lo < hi:
        if packed > 0:
            # Whole planes: their row sums lie in a row, and so do their windows.
            plane, j, n = lo, 0, min(slab, hi - lo)
            rows, length = (1, (n * H - flat + 1) * W) if flat > 0 else (n * count, W)
            lines, windows = 1, n * oH * oW
            begin, end = 0, n * H
        else:
            plane, j = lo // count, lo % count
            n = min(slab, hi - lo, count - j)
            rows, length = n, W
            lines, windows = n, oW
            begin, end = jobs[0, j], jobs[0, j + n - 1] + jobs[1, j + n - 1]
        if weighting == SHARES:
            scale(src, (plane * H + begin) * W, (end - begin) * W, weights, begin * W, scaled)
            sum_rows(scaled, -begin * W, W, length, jobs, j, rows, sums)
        elif short:
            sum_short_rows(src, plane * H * W, W, jobs, j, rows, sums)
        else:
            sum_rows(src, plane * H * W, W, length, jobs, j, rows, sums)
        to = plane * oH * oW
        if widest > 0 and folded == 1:
            pick_windows(sums, W, first, picks, shape, weights, weighting, j, lines, target, dst, to, windows)
        elif folded > 1:
            fold_windows(sums, W, first, picks, shape, weights, weighting, j, lines, target, dst, to, windows)
        else:
            span_windows(sums, W, columns, weights, weighting, j, lines, target, dst, to, windows)
        lo += n


@_kernel
def sum_pixels(src, dst, H, W, inner, oH, oW, jobs, targets, columns, tallest, direct, weights, weighting, lo, hi):
    """Sum the windows of the jobs `lo` to `hi` of channels_last planes."""
    rolled()
    count = jobs.shape[1]
    pitch = W * inner
    slab = min(hi - lo, max(1, SLAB // (pitch * tallest if weighting == SHARES else pitch)))
    sums = scratch(src, 0 if direct else slab * pitch + LANES)
    scaled = scratch(src, slab * tallest * pitch + LANES if weighting == SHARES and not direct else 0)
    while lo < hi:
        plane, j = lo // count, lo % count
        n = min(hi - lo, count - j)
        at, to = plane * H * pitch, plane * oH * oW * inner
        if direct:
            pixel_windows(src, at, W, inner, jobs, True, columns, weights, weighting, j, n, targets, dst, to, oW)
        else:
            n = min(n, slab)
            if weighting == SHARES:
                begin, end = jobs[0, j], jobs[0, j + n - 1] + jobs[1, j + n - 1]
                scale_pixels(src, at + begin * pitch, (end - begin) * W, inner, weights, begin * W, scaled)
                sum_rows(scaled, -begin * pitch, pitch, pitch, jobs, j, n, sums)
            else:
                sum_rows(src, at, pitch, pitch, jobs, j, n, sums)
            pixel_windows(sums, 0, W, inner, jobs, False, columns, weights, weighting, j, n, targets, dst, to, oW)
        lo += n


@_kernel
def sum_small_planes(src, dst, H, W, oH, oW, jobs, targets, columns, weights, weighting, lo, hi):
    """Sum the windows of the small planes `lo` to `hi`, which a transposition lays side by side.

    There they are the channels of channels_last pixels: each lane has its own plane, and none is idle at a row's end.
    Lanes beyond the last plane compute with whatever memory holds, and nobody reads them.
    Many planes take from a third to nine tenths of the time that `sum_windows` takes.
    """
    rolled()
    abreast = min(ABREAST, (hi - lo + LANES - 1) // LANES * LANES)
    pixels, pooled = scratch(src, H * W * abreast), scratch(src, oH * oW * abreast)
    count = jobs.shape[1]
    while lo < hi:
        n = min(hi - lo, abreast)
        inner = (n + LANES - 1) // LANES * LANES
        transpose(src, lo * H * W, H * W, n, H * W, pixels, 0, inner, LANES * H * W)
        pixel_windows(pixels, 0, W, inner, jobs, True, columns, weights, weighting, 0, count, targets, pooled, 0, oW)
        transpose(pooled, 0, inner, oH * oW, n, dst, lo * oH * oW, oH * oW, 0)
        lo += n


@_parallel
def sum_runs_parallel(src, dst, length, weights, count, threads):
    """Share the work of `sum_runs` out to threads."""
    for t in prange(threads):
        sum_runs(src, dst, length, weights, t * count // threads, (t + 1) * count // threads)


@_parallel
def spread_runs_parallel(src, dst, length, weights, count, threads):
    """Share the work of `spread_runs` out to threads."""
    for t in prange(threads):
        spread_runs(src, dst, length, weights, t * count // threads, (t + 1) * count // threads)


@_parallel
def sum_windows_parallel(
    src, dst, H, W, oH, oW, jobs, target, columns, first, picks, shape, weights, weighting, count, threads
):
    """Share the work of `sum_windows` out to threads."""
    for t in prange(threads):
        lo, hi = t * count // threads, (t + 1) * count // threads
        sum_windows(src, dst, H, W, oH, oW, jobs, target, columns, first, picks, shape, weights, weighting, lo, hi)


@_parallel
def sum_small_planes_parallel(src, dst, H, W, oH, oW, jobs, targets, columns, weights, weighting, count, threads):
    """Share the work of `sum_small_planes` out to threads."""
    for t in prange(threads):
        lo, hi = t * count // threads, (t + 1) * count // threads
        sum_small_planes(src, dst, H, W, oH, oW, jobs, targets, columns, weights, weighting, lo, hi)


@_parallel
def sum_pixels_parallel(
    src, dst, H, W, inner, oH, oW, jobs, targets, columns, tallest, direct, weights, weighting, count, threads
):
    """Share the work of `sum_pixels` out to threads."""
    for t in prange(threads):
        lo, hi = t * count // threads, (t + 1) * count // threads
        sum_pixels(src, dst, H, W, inner, oH, oW, jobs, targets, columns, tallest, direct, weights, weighting, lo, hi)


@_kernel
def add_pieces(pieces, dst, planes, inner, oH, oW, rows, jobs, target, areas):
    """Add up the pieces of every window, and divide by its area.

    The sum is kept in float64: there is one addition for `PIECE` elements.
    """
    top, height = jobs
    length = oW * inner
    for plane in range(planes):
        for j in range(top.size):
            for i in range(length):
                s = 0.0
                for piece in range(top[j], top[j] + height[j]):
                    s += get(pieces, (plane * rows + piece) * length + i)
                s /= get(areas, j * oW + i // inner)
                for oh in range(target[j], target[j + 1]):
                    put(dst, (plane * oH + oh) * length + i, s)


class Plan:
    """How one pooling of given sizes is done: worked out once, used many times."""

    def __init__(self, tensor_type, kernels, arguments, units, threads, pieces):
        self.kernels = kernels  # for one thread and for several
        self.arguments = arguments  # what the kernels get beside source and target: sizes and tables
        self.units = units  # of work
        self.threads = threads  # the most that are worth their start
        self.pieces = pieces  # where windows are cut: how many sums, and arguments of `add_pieces`
        self._tensor_type = tensor_type
        self._sums_type = tensor_type if pieces is None else tensor_type.of_sums
        self._serial = self._parallel = self._add_pieces = None  # machine code, once it is needed

    @property
    def only_call(self):
        """The kernel, and its arguments beside source and target, if one call on one thread does it all; else None."""
        if self.threads > 1 or self.pieces is not None:
            return None
        return self.kernels[0], (*self.arguments, 0, self.units)

    def run(self, src, dst, threads):
        """Fill the tensor `dst` from the tensor `src`, on up to `threads` threads."""
        sums = dst if self.pieces is None else self._sums_type.empty(self.pieces[0])
        threads = min(threads, self.threads)
        if threads < 2 or not run_in_pool(self._run_parallel, src, sums, threads):
            if self._serial is None:
                self._serial = self._compiled(self.kernels[0])
            self._serial(src, sums, *self.arguments, 0, self.units)
        if self.pieces is not None:
            _, arguments = self.pieces
            if self._add_pieces is None:
                self._add_pieces = compiled(add_pieces, self._sums_type, self._tensor_type, *map(typeof, arguments))
            self._add_pieces(sums, dst, *arguments)

    def _run_parallel(self, src, sums, threads):
        if self._parallel is None:
            self._parallel = self._compiled(self.kernels[1])
        self._parallel(src, sums, *self.arguments, self.units, threads)

    def _compiled(self, kernel):
        return compiled(kernel, self._tensor_type, self._sums_type, *map(typeof, self.arguments), intp, intp)


def forward(tensor_type, planes, H, W, oH, oW, inner=1):
    """Plan the average of every window: input of ``(H, W)`` to output of ``(oH, oW)``.

    Parameters
    ----------
    tensor_type : FlatTensor
        What input and output are to compiled code; halves are int16 (float16) or uint16 (bfloat16) there.
    planes : int
        How many planes lie one after the other: ``N * C`` for contiguous tensors, ``N`` for channels_last.
    H, W, oH, oW : int
        Sizes of a plane, in elements (channels_last: pixels), all at least 1.
    inner : int
        Elements of a pixel: 1 for contiguous tensors, ``C`` for channels_last.

    Returns
    -------
    Plan
        Its `run` fills the output.
    """
    return _plan(tensor_type, planes, H, W, oH, oW, inner, True)


def backward(tensor_type, planes, H, W, oH, oW, inner=1):
    """Plan the gradient of :func:`forward`: grad_output of ``(oH, oW)`` to grad_input of ``(H, W)``.

    Parameters and result are those of :func:`forward`.
    """
    return _plan(tensor_type, planes, oH, oW, H, W, inner, False)


def _plan(tensor_type, planes, H, W, oH, oW, inner, average):
    dtype = as_dtype(tensor_type.of_sums.dtype)
    kernels, arguments, units, pieces = _plan_plane(dtype, H, W, oH, oW, inner, average)
    count = planes * units
    grain = GRAIN if sum_windows in kernels else FAST_GRAIN
    threads = min(count, 1 + planes * inner * (H * W + oH * oW) // grain)
    if pieces is not None:
        rows, (oH, oW, inner), *tables = pieces
        pieces = planes * rows * oW * inner, (planes, inner, oH, oW, rows, *tables)
    return Plan(tensor_type, kernels, arguments, count, threads, pieces)


@lru_cache(maxsize=1024)
def _plan_plane(dtype, H, W, oH, oW, inner, average):
    """Return how one plane is done: the kernels, their arguments, the units of work, and where windows are cut."""
    if inner == 1 and W == oW >= 4 * LANES:
        # Columns are kept, and only rows added up: a row is a pixel with as many channels. Up to twice as fast; but
        # not for fewer columns, as channels are added 64 at a time.
        inner, W, oW = W, 1, 1
    if inner == 1:
        from_runs, to_runs = _are_runs(H, W, oH, oW), _are_runs(oH, oW, H, W)
        if from_runs:
            # Backward, such windows are of elements that were repeated, each an average of one.
            runs = _plan_runs(H * W // (oH * oW), oH * oW, dtype, average)
            if runs:
                return runs
        if to_runs:
            length = oH * oW // (H * W)
            if NARROW < length <= PIECE:
                area = np.full(1, 1 if average else length, dtype)
                return (spread_runs, spread_runs_parallel), (length, area), H * W, None
        # Narrower runs: the same as planes of one row, if it is not too long for the tables.
        if max(H * W, oH * oW) <= PACK and (from_runs or to_runs):
            H, W, oH, oW = 1, H * W, 1, oH * oW
    elif H == 1 == oH:
        H, W, oH, oW = W, 1, oW, 1  # a row of pixels is a column of pixels, which needs no second step

    tops, bottoms = pooling_windows(H, oH)
    columns = np.stack(pooling_windows(W, oW))
    widths = columns[1] - columns[0]
    # Neighbouring rows with the same window are computed once.
    new, target = _distinct(tops, bottoms, max(1, SHARED // (oW * inner)))
    tops, bottoms = tops[new], bottoms[new]
    if average:
        weighting, weights = AREAS, np.outer(bottoms - tops, widths)
    else:
        areas = np.outer(*(np.subtract(*reversed(pooling_windows(*sizes))) for sizes in ((oH, H), (oW, W))))
        if areas.min() == areas.max():
            weighting, weights = AREAS, np.full((len(new), oW), areas[0, 0])
        else:
            weighting, weights = SHARES, 1 / areas

    most_rows = PIECE_ROWS
    if inner > 1 and oW == 1:
        # Windows as wide as the plane are runs of pixels: they are added up at once, as rows of one pixel each, or of
        # several, if they have few channels: up to six times as fast.
        most_rows = PIECE_RUN
        length = max(n for n in range(1, 8 * LANES // inner + 1) if W % n == 0) if inner < LANES else 1
        rows = W // length
        tops, bottoms, H, W = tops * rows, bottoms * rows, H * rows, length
        columns, widths = np.array([[0], [length]]), np.array([length])

    pieces = None
    rows = max(1, min(most_rows, PIECE // int(widths.max())))
    counts = -(-(bottoms - tops) // rows)
    if counts.max() > 1:
        last = np.cumsum(counts)
        areas = weights if weighting == AREAS else np.ones((len(new), oW))
        pieces = int(last[-1]), (oH, oW, inner), np.stack([last - counts, counts]), target, areas.astype(dtype).ravel()
        nth = np.arange(last[-1]) - np.repeat(last - counts, counts)
        tops = np.repeat(tops, counts) + nth * rows
        bottoms = np.minimum(tops + rows, np.repeat(bottoms, counts))
        target = np.arange(last[-1] + 1)
        oH = int(last[-1])
        weights = np.ones((oH, oW)) if weighting == AREAS else weights
    if weighting == AREAS and (np.frexp(weights)[0] == 0.5).all():
        weighting, weights = FACTORS, 1 / weights

    count, heights = len(tops), bottoms - tops
    largest = int(heights.max() * widths.max())
    jobs = np.stack([tops, heights])
    # Pieces of windows hold more than a few elements, so there are none to add up.
    small = inner == 1 and pieces is None and H * W + oH * oW <= SMALL
    small = small and heights.min() * widths.min() < largest <= FEW
    picked = widths.max() <= NARROW
    if small or inner >= LANES or (inner > 1 and not picked):
        # Neighbouring columns, too, if they are many; but pieces are all kept.
        starts, ends = columns
        new, across = _distinct(starts, ends, oW)
        if pieces is not None or oW * inner < REPEATED * len(new):
            new, across = _distinct(starts, ends, 1)
        weights = weights if weighting == SHARES else weights[:, new]
        columns = columns.take(new, axis=1)  # in C order, as all tables are: another would be compiled for anew
        bounds, results = (jobs, (target, across), columns), (weights.astype(dtype).ravel(), weighting)
        if inner == 1:
            return (sum_small_planes, sum_small_planes_parallel), (H, W, oH, oW, *bounds, *results), 1, None
        direct = int(inner >= LANES and largest <= PIXELS)
        arguments = H, W, inner, oH, oW, *bounds, int(heights.max()), direct, *results
        return (sum_pixels, sum_pixels_parallel), arguments, count, pieces

    packed, flat, folded = 0, 0, 1
    (first, picks), narrow = _NO_PICKS, (0, 0, 0)
    if picked:
        # The few channels of a pixel are columns of their own: up to three times as fast as pixel by pixel.
        at = (columns[0][:, None] * inner + np.arange(inner)).ravel()
        wide, weights = np.repeat(widths > widths.min(), inner), np.repeat(weights, inner, axis=1)
        W, oW = W * inner, oW * inner
        elements = max(H * W, oH * oW, count * W)
        if pieces is None and elements <= PACK and (oH < COPIES * count or oW < 2 * LANES):
            packed = PACK // elements
            if heights.min() == heights.max() and (W <= NARROW or count == H):
                # Rows from every one on are added, needed or not, in one go through the planes.
                flat = int(heights.max())
            repeats = np.diff(target)
            at = (np.repeat(tops if flat else np.arange(count), repeats)[:, None] * W + at).ravel()
            at = _tile(at, packed, (H if flat else count) * W)
            wide = np.tile(wide, oH * packed)
            weights = np.tile(weights if weighting == SHARES else np.repeat(weights, repeats, axis=0), (packed, 1))
            jobs = np.stack([[0], [flat]]) if flat else np.stack([_tile(tops, packed, H), np.tile(heights, packed)])
            target = np.array([0, 1])
        width = int(widths.min())
        if inner == 1 and width in (2, 4, 8) and not wide.any() and not (at % width).any():
            folded = width  # the sums of so many neighbours are picked, not elements
        first, picks, registers = _picks(at // folded, wide)
        first *= folded
        narrow = width, int(widths.max()), registers
    shape = np.array([packed, flat, count, heights.max(), *narrow, inner, folded])
    weights = np.append(weights, np.ones(LANES)).astype(dtype)  # as many as full lanes read
    tables = jobs, target, columns, first, picks, shape, weights, weighting
    return (sum_windows, sum_windows_parallel), (H, W, oH, oW, *tables), 1 if packed else count, pieces


def _distinct(starts, ends, most):
    """Split windows into runs of equal ones, of no more than `most`: return the first of each, and the runs' bounds."""
    new = (np.diff(starts, prepend=-1) != 0) | (np.diff(ends, prepend=-1) != 0) | (np.arange(len(starts)) % most == 0)
    new = np.flatnonzero(new)
    return new, np.append(new, len(starts))


def _are_runs(H, W, oH, oW):
    """Say whether windows of ``(H, W)`` are runs of memory, equally long and one after the other."""
    return (oW == 1 and H % oH == 0) or (H == oH == 1 and W % oW == 0)


def _plan_runs(length, runs, dtype, average):
    """Return the plan for windows that are equal runs of memory, or None if these are narrow or cannot be cut."""
    if length <= NARROW:
        return None
    # Shorter pieces than these would cost more than they gain.
    most = max(1, length // (PIECE // 8))
    cuts = next((cuts for cuts in range(-(-length // PIECE), most + 1) if length % cuts == 0), None)
    if cuts is None:
        return None
    area = length if average else 1
    pieces = None
    if cuts > 1:
        jobs = np.stack([np.arange(runs) * cuts, np.full(runs, cuts)])
        pieces = runs * cuts, (runs, 1, 1), jobs, np.arange(runs + 1), np.full(runs, area, dtype)
    arguments = length // cuts, np.full(1, 1 if pieces else area, dtype)
    return (sum_runs, sum_runs_parallel), arguments, runs * cuts, pieces


def _picks(at, wide):
    """Say where sixteen windows after sixteen start, and how many registers sixteen of them span.

    The first array has the first start of each window's sixteen.
    The second has each window's own start, counted from there, and again for wide windows only, -1 for others.
    """
    missing = -len(at) % LANES
    at = np.append(at, np.full(missing, at[-1])).reshape(-1, LANES)
    first = np.repeat(at.min(axis=1), LANES)
    start = at.ravel() - first
    wide_start = np.where(np.append(wide, np.zeros(missing, bool)), start, -1)
    return first, np.stack([start, wide_start]).astype(np.int32), int(start.max()) // LANES + 1


def _tile(values, count, step):
    """Return `values`, and then again with `step` added, `count` times in all."""
    return (np.arange(count)[:, None] * step + values).ravel()


_NO_PICKS = np.zeros(0, np.int64), np.zeros((2, 0), np.int32)


keep_compiled(
    sum_runs,
    sum_runs_parallel,
    spread_runs,
    spread_runs_parallel,
    sum_windows,
    sum_windows_parallel,
    sum_small_planes,
    sum_small_planes_parallel,
    sum_pixels,
    sum_pixels_parallel,
    add_pieces,
)
