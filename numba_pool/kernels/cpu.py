"""The CPU kernels: flat arrays in, flat arrays filled.

Both directions are one computation, the sum over windows.
The forward sums the windows of the input, then divides each sum by its window's area.
The backward first multiplies each gradient by its share, one over its window's area, then sums, for every element of
the input, over the outputs whose windows hold it; these form a window too, by the same formula with the sizes' roles
swapped.

So a kernel speaks of `src` and `dst`, whatever the direction: flat views of contiguous memory, ``(planes, H, W,
inner)`` and ``(planes, oH, oW, inner)``.
A contiguous tensor has ``planes = N * C`` and ``inner = 1``, a channels_last one ``planes = N`` and ``inner = C``.

Work comes in jobs.
A job is a run of whole rows of one plane, ``top[j]`` up to ``bottom[j]``, that is summed into the rows ``target[j]``
up to ``target[j + 1]`` of `dst`: several, where neighbouring outputs have the same window.
Jobs are independent, and each one's order of summation depends on the sizes alone; threads share them out as they like.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from .._cache import keep_compiled
from .._threads import run
from ..windows import pooling_windows
from .simd import LANES, fill, get, load, put, scratch, store, total

# A window of more elements, or more rows, is cut into pieces, one job each: a chain of additions stays short, and
# every thread finds work.
PIECE = 4096
PIECE_ROWS = 128

# Windows this narrow are summed for all positions of a row together, sixteen at a time; wider ones one by one.
NARROW = 8

# The row sums that wait for their windows, in elements: few enough to stay in a core's first-level cache.
SLAB = 1024

# The pixels that are added in registers, for one block of channels after the other: few enough to stay in that cache,
# too.
TILE = 4096

# Elements per thread below which a second thread costs more than it gains.
GRAIN = 16384

_inline = njit(nogil=True, error_model="numpy", forceinline=True)
_kernel = njit(nogil=True, error_model="numpy")
_parallel = njit(nogil=True, error_model="numpy", parallel=True)


@_inline
def span(src, first, n):
    """Return the sum of ``src[first : first + n]``, kept in sixteen lanes until the end."""
    full = n // LANES * LANES
    s = load(src, first + full, n - full)
    i = 0
    while i + 4 * LANES <= full:
        a = first + i
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
def read(src, i, lanes, shares, p, shared):
    """Return up to sixteen elements of `src`, multiplied by their `shares` if they are `shared`."""
    s = load(src, i, lanes)
    if shared:
        s = s * load(shares, p, lanes)
    return s


@_inline
def sum_rows(src, row, W, top, bottom, shares, shared, sums, at):
    """Set ``sums[at:][:W]`` to the sum of the rows `top` to `bottom` of the plane whose first element is `row`.

    Narrow rows are summed in a register, one block of sixteen columns after the other.
    Wide rows are added to `sums` one by one, so that memory is read in its order, which the hardware foresees.
    Lanes of `sums` past `W` become zero.
    """
    if W <= 4 * LANES:
        for i in range(0, W, LANES):
            s = read(src, row + top * W + i, W - i, shares, top * W + i, shared)
            for ih in range(top + 1, bottom):
                s = s + read(src, row + ih * W + i, W - i, shares, ih * W + i, shared)
            store(sums, at + i, s, LANES)
    else:
        for ih in range(top, bottom):
            for i in range(0, W, LANES):
                lanes = W - i
                if lanes >= LANES:
                    s = read(src, row + ih * W + i, LANES, shares, ih * W + i, shared)
                else:
                    s = read(src, row + ih * W + i, lanes, shares, ih * W + i, shared)
                if ih > top:
                    s = s + load(sums, at + i, LANES)
                store(sums, at + i, s, LANES)


@_inline
def copy(src, at, dst, to, n):
    """Set ``dst[to:][:n]`` to ``src[at:][:n]``; only the last few elements need a mask, which costs."""
    full = n // LANES * LANES
    for i in range(0, full, LANES):
        store(dst, to + i, load(src, at + i, LANES), LANES)
    if full < n:
        store(dst, to + full, load(src, at + full, n - full), n - full)


@_inline
def divide(values, n, areas, p):
    """Divide ``values[:n]`` by `areas` from `p` on; `areas` repeats itself, and `values` has room up to full lanes."""
    done = 0
    while done < n:
        part = min(areas.size - p, n - done)
        for i in range(0, part, LANES):
            s = load(values, done + i, LANES) / load(areas, p + i, part - i)
            store(values, done + i, s, part - i)
        done += part
        p = 0


@_kernel
def sum_windows(src, dst, H, W, inner, oH, oW, jobs, columns, weights, average, lo, hi):
    """Sum the windows of jobs `lo` to `hi` of all planes, contiguous layout.

    `weights` are the areas that the sums are divided by if `average`, else the shares that the elements of `src` are
    multiplied by; without weights, the sums are plain.

    Rows first: the rows of a window are added up element by element, sixteen columns at once.
    Then columns: the row of sums is cut into the windows.
    Several jobs, a slab, take each step together, because rows are short.
    """
    top, bottom, target = jobs
    starts, ends = columns
    count = top.size - 1
    shared = weights.size > 0 and not average
    pitch = (W + LANES - 1) // LANES * LANES
    slab = min(max(1, SLAB // pitch), hi - lo)
    narrowest, widest = W, 0
    for ow in range(oW):
        kw = get(ends, ow) - get(starts, ow)
        narrowest, widest = min(narrowest, kw), max(widest, kw)
    row_sums = scratch(src, slab * pitch + LANES)
    window_sums = scratch(src, 2 * row_sums.size)
    results = scratch(src, slab * oW + LANES)

    j = lo % count
    plane = lo // count
    for first_job in range(lo, hi, slab):
        n = min(slab, hi - first_job)
        first_j, first_plane = j, plane
        for r in range(n):
            row = plane * H * W
            if oW == 1 and not shared:
                # Whole rows are one run of memory.
                put(results, r, span(src, row + top[j] * W, (bottom[j] - top[j]) * W))
            else:
                sum_rows(src, row, W, top[j], bottom[j], weights, shared, row_sums, r * pitch)
            j += 1
            if j == count:
                j = 0
                plane += 1

        if oW > 1 or shared:
            if widest <= NARROW:
                for i in range(0, n * pitch, LANES):
                    s = load(row_sums, i, LANES)
                    for d in range(1, narrowest):
                        s = s + load(row_sums, i + d, LANES)
                    store(window_sums, i, s, LANES)
                    if widest > narrowest:
                        store(window_sums, row_sums.size + i, s + load(row_sums, i + narrowest, LANES), LANES)
                for r in range(n):
                    for ow in range(oW):
                        wide = get(ends, ow) - get(starts, ow) > narrowest
                        at = r * pitch + get(starts, ow) + (row_sums.size if wide else 0)
                        put(results, r * oW + ow, get(window_sums, at))
            else:
                for r in range(n):
                    for ow in range(oW):
                        kw = get(ends, ow) - get(starts, ow)
                        put(results, r * oW + ow, span(row_sums, r * pitch + get(starts, ow), kw))

        if average:
            divide(results, n * oW, weights, first_j * oW)
        if count == oH:
            copy(results, 0, dst, first_job * oW, n * oW)
        else:
            j, plane = first_j, first_plane
            for r in range(n):
                for oh in range(target[j], target[j + 1]):
                    copy(results, r * oW, dst, (plane * oH + oh) * oW, oW)
                j += 1
                if j == count:
                    j = 0
                    plane += 1


@_kernel
def sum_pixels(src, dst, H, W, inner, oH, oW, jobs, columns, weights, average, lo, hi):
    """Do what `sum_windows` does, channels_last layout: whole pixels of `inner` channels are added.

    A window is worked through in tiles of pixels.
    Within a tile, 64 channels at a time are summed in four registers.
    """
    top, bottom, target = jobs
    starts, ends = columns
    count = top.size - 1
    shared = weights.size > 0 and not average
    pixels = max(1, min(64, TILE // inner))
    sums = scratch(src, inner + LANES)
    j = lo % count
    plane = lo // count
    for _ in range(lo, hi):
        first_row = (plane * oH + target[j]) * oW * inner
        for ow in range(oW):
            kw = get(ends, ow) - get(starts, ow)
            tile_width = min(kw, pixels)
            tile_height = pixels // tile_width
            for ih0 in range(top[j], bottom[j], tile_height):
                ih1 = min(ih0 + tile_height, bottom[j])
                for iw0 in range(get(starts, ow), get(ends, ow), tile_width):
                    iw1 = min(iw0 + tile_width, get(ends, ow))
                    fresh = ih0 == top[j] and iw0 == get(starts, ow)
                    add_tile(src, plane * H * W, W, inner, ih0, ih1, iw0, iw1, weights, shared, sums, fresh)
            if average:
                area = fill(src, get(weights, j * oW + ow))
                for i in range(0, inner, LANES):
                    store(sums, i, load(sums, i, LANES) / area, LANES)
            copy(sums, 0, dst, first_row + ow * inner, inner)
        # Rows with the same window are copies of the first.
        for oh in range(target[j] + 1, target[j + 1]):
            copy(dst, first_row, dst, (plane * oH + oh) * oW * inner, oW * inner)
        j += 1
        if j == count:
            j = 0
            plane += 1


@_inline
def add_tile(src, plane, W, inner, ih0, ih1, iw0, iw1, shares, shared, sums, fresh):
    """Add the pixels of the rows `ih0` to `ih1` and columns `iw0` to `iw1` to `sums`, or put them there if `fresh`."""
    c = 0
    while c < inner:
        lanes = min(inner - c, LANES)
        four = inner - c >= 4 * LANES
        s = fill(src, 0)
        s1, s2, s3 = s, s, s
        for ih in range(ih0, ih1):
            for iw in range(iw0, iw1):
                i = (plane + ih * W + iw) * inner + c
                share = fill(src, get(shares, ih * W + iw) if shared else 1)
                if four:
                    a, a1 = load(src, i, LANES), load(src, i + LANES, LANES)
                    a2, a3 = load(src, i + 2 * LANES, LANES), load(src, i + 3 * LANES, LANES)
                    if shared:
                        a, a1, a2, a3 = a * share, a1 * share, a2 * share, a3 * share
                    s, s1, s2, s3 = s + a, s1 + a1, s2 + a2, s3 + a3
                else:
                    a = load(src, i, lanes)
                    if shared:
                        a = a * share
                    s = s + a
        if not fresh:
            s = s + load(sums, c, LANES)
        store(sums, c, s, LANES)
        c += LANES
        if four:
            if not fresh:
                s1, s2 = s1 + load(sums, c, LANES), s2 + load(sums, c + LANES, LANES)
                s3 = s3 + load(sums, c + 2 * LANES, LANES)
            store(sums, c, s1, LANES)
            store(sums, c + LANES, s2, LANES)
            store(sums, c + 2 * LANES, s3, LANES)
            c += 3 * LANES


@_kernel
def add_pieces(pieces, dst, inner, oH, oW, jobs, areas, lo, hi):
    """Add up the pieces ``top[j]`` to ``bottom[j]`` of every window, and divide by the window's area.

    The sum is kept in float64: there is one addition for `PIECE` elements.
    """
    top, bottom, target = jobs
    count = top.size - 1
    length = oW * inner
    j = lo % count
    plane = lo // count
    for _ in range(lo, hi):
        for i in range(length):
            s = 0.0
            for piece in range(top[j], bottom[j]):
                s += get(pieces, (plane * bottom[count - 1] + piece) * length + i)
            s /= get(areas, j * oW + i // inner)
            for oh in range(target[j], target[j + 1]):
                put(dst, (plane * oH + oh) * length + i, s)
        j += 1
        if j == count:
            j = 0
            plane += 1


@_parallel
def sum_windows_parallel(src, dst, H, W, inner, oH, oW, jobs, columns, weights, average, count, threads):
    """Share the jobs of `sum_windows` out to threads."""
    for t in prange(threads):
        lo, hi = t * count // threads, (t + 1) * count // threads
        sum_windows(src, dst, H, W, inner, oH, oW, jobs, columns, weights, average, lo, hi)


@_parallel
def sum_pixels_parallel(src, dst, H, W, inner, oH, oW, jobs, columns, weights, average, count, threads):
    """Share the jobs of `sum_pixels` out to threads."""
    for t in prange(threads):
        lo, hi = t * count // threads, (t + 1) * count // threads
        sum_pixels(src, dst, H, W, inner, oH, oW, jobs, columns, weights, average, lo, hi)


class Plan(NamedTuple):
    """The tables for summing windows of ``(H, W)`` planes to ``(oH, oW)`` planes."""

    jobs: np.ndarray  # (3, jobs + 1): top, bottom, target
    columns: np.ndarray  # (2, oW): where the windows start and end
    pieces: np.ndarray | None  # like jobs, where windows are cut: which jobs they consist of
    areas: np.ndarray  # (windows' rows * oW, repeated): the areas of different windows
    shares: np.ndarray  # (oH * oW,): one over the areas of all windows
    none: np.ndarray  # (0,): no weights


@lru_cache(maxsize=1024)
def plan(H, W, oH, oW, dtype):
    """Return the `Plan` of two plane sizes, for arrays of `dtype`; it is kept for the next call."""
    dtype = np.float64 if dtype == np.float64 else np.float32
    starts, ends = pooling_windows(H, oH)
    columns = np.stack(pooling_windows(W, oW))
    widths = columns[1] - columns[0]
    shares = (1.0 / np.outer(ends - starts, widths)).astype(dtype).ravel()
    # Neighbouring rows with the same window are computed once.
    new = np.flatnonzero((np.diff(starts, prepend=-1) != 0) | (np.diff(ends, prepend=-1) != 0))
    starts, ends, target = starts[new], ends[new], np.append(new, oH)
    areas = np.outer(ends - starts, widths).astype(dtype).ravel()
    # Repeated, so that planes with few outputs share a loop.
    areas = np.tile(areas, max(1, 512 // areas.size))
    rows = max(1, min(PIECE_ROWS, PIECE // int(widths.max())))
    counts = -(-(ends - starts) // rows)
    pieces = None
    if counts.max() > 1:
        last = np.cumsum(counts)
        pieces = _jobs(last - counts, last, target)
        nth = np.arange(last[-1]) - np.repeat(last - counts, counts)
        starts = np.repeat(starts, counts) + nth * rows
        ends = np.minimum(starts + rows, np.repeat(ends, counts))
        target = np.arange(last[-1] + 1)
    return Plan(_jobs(starts, ends, target), columns, pieces, areas, shares, np.empty(0, dtype))


def _jobs(top, bottom, target):
    return np.stack([np.append(top, 0), np.append(bottom, 0), target])


def forward(input, output, planes, H, W, inner, oH, oW, threads):
    """Fill `output` with the means of the windows of `input`, on up to `threads` threads."""
    tables = plan(H, W, oH, oW, input.dtype)
    _sum(input, output, planes, H, W, inner, oH, oW, tables, tables.areas, True, threads)


def backward(grad_output, grad_input, planes, H, W, inner, oH, oW, threads):
    """Fill `grad_input` with the gradients of `forward`'s inputs, given those of its outputs, on up to `threads`
    threads."""
    shares = plan(H, W, oH, oW, grad_output.dtype).shares
    tables = plan(oH, oW, H, W, grad_output.dtype)
    _sum(grad_output, grad_input, planes, oH, oW, inner, H, W, tables, shares, False, threads)


def _sum(src, dst, planes, H, W, inner, oH, oW, tables, weights, average, threads):
    kernels = (sum_windows, sum_windows_parallel) if inner == 1 else (sum_pixels, sum_pixels_parallel)
    jobs, columns, pieces = tables.jobs, tables.columns, tables.pieces
    rows = jobs.shape[1] - 1
    count = planes * rows
    threads = min(threads, count, 1 + planes * inner * max(H * W, oH * oW) // GRAIN)
    if pieces is None:
        run(*kernels, (src, dst, H, W, inner, oH, oW, jobs, columns, weights, average), count, threads)
        return
    sums = np.empty(count * oW * inner, tables.areas.dtype)
    areas, weights = (weights, tables.none) if average else (np.ones_like(tables.areas), weights)
    run(*kernels, (src, sums, H, W, inner, rows, oW, jobs, columns, weights, False), count, threads)
    add_pieces(sums, dst, inner, oH, oW, pieces, areas, 0, planes * (pieces.shape[1] - 1))


keep_compiled(sum_windows, sum_windows_parallel, sum_pixels, sum_pixels_parallel, add_pieces)
