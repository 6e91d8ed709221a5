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
from .simd import LANES, fill, get, load, pick, put, rolled, scratch, store, total

# A window of more elements, or more rows, is cut into pieces, one job each: a chain of additions stays short, and
# every thread finds work.
PIECE = 4096
PIECE_ROWS = 128

# Windows this narrow are summed for all positions of a row together, sixteen at a time; wider ones one by one.
NARROW = 8

# Small planes are worked on several at a time, up to this many elements.
PACK = 2048

# The row sums that wait for their windows, in elements: few enough to stay in a core's first-level cache.
SLAB = 1024

# The pixels that are added in registers, for one block of channels after the other: few enough to stay in that cache,
# too.
TILE = 4096

# Elements per thread below which a second thread costs more than it gains.
GRAIN = 16384

_inline = njit(nogil=True, error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
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
def add_rows(src, i, W, height, lanes):
    """Return the sum, for sixteen columns from element `i` on, of `height` rows of `W` elements.

    From lane `lanes` on, zeros, and memory is not read there.
    """
    s = load(src, i, lanes)
    end = i + height * W
    i += W
    while i < end:
        s = s + load(src, i, lanes)
        i += W
    return s


@_inline
def sum_rows(src, plane, W, jobs, j, n, sums):
    """Add up the rows of `n` jobs from `j` on, and line up the sums, `W` elements each, in `sums`.

    Short columns are summed in a register, sixteen of them side by side; lanes past a row's end hold what comes there,
    and no window takes them.
    Of many long rows, one after the other is added to `sums`, so that memory is read in its order, which the hardware
    foresees.
    """
    for r in range(n):
        first = plane + get(jobs, 2 * (j + r)) * W
        height = get(jobs, 2 * (j + r) + 1)
        to = r * W
        if W <= 4 * LANES or height <= 8:
            last = first + (height - 1) * W + LANES
            for i in range(0, W, LANES):
                if last + i <= src.size:
                    store(sums, to + i, add_rows(src, first + i, W, height, LANES), LANES)
                else:
                    store(sums, to + i, add_rows(src, first + i, W, height, W - i), LANES)
        else:
            for d in range(height):
                for i in range(0, W, LANES):
                    a = first + d * W + i
                    s = load(src, a, LANES) if a + LANES <= src.size else load(src, a, W - i)
                    if d > 0:
                        s = s + load(sums, to + i, LANES)
                    store(sums, to + i, s, LANES)


@_inline
def scale(src, first, n, shares, p, scaled):
    """Set ``scaled[:n]`` to ``src[first:][:n]`` multiplied by ``shares[p:][:n]``."""
    for i in range(0, n, LANES):
        lanes = min(n - i, LANES)
        s = load(src, first + i, LANES) if lanes == LANES else load(src, first + i, lanes)
        store(scaled, i, s * load(shares, p + i, LANES), LANES)


@_inline
def copy(src, at, dst, to, n):
    """Set ``dst[to:][:n]`` to ``src[at:][:n]``; only the last few elements need a mask, which costs."""
    full = n // LANES * LANES
    for i in range(0, full, LANES):
        store(dst, to + i, load(src, at + i, LANES), LANES)
    if full < n:
        store(dst, to + full, load(src, at + full, n - full), n - full)


@_inline
def pick_windows(sums, W, picks, first, narrowest, widest, registers, areas, divide, j, runs, target, dst, to, length):
    """Sum the narrow windows of `sums`, sixteen at a time."""
    index, extra = picks
    for r in range(runs):
        row = to + get(target, j + r) * length
        for k in range(0, length, LANES):
            a = r * W + get(first, k // LANES)
            s = fill(sums, 0)
            for q in range(0, registers * LANES, LANES):
                t = load(sums, a + q, LANES)
                for d in range(1, narrowest):
                    t = t + load(sums, a + q + d, LANES)
                s = pick(s, t, index, k, q)
            if widest > narrowest:
                t = fill(sums, 0)
                for q in range(0, registers * LANES, LANES):
                    t = pick(t, load(sums, a + q + narrowest, LANES), extra, k, q)
                s = s + t
            if divide:
                s = s / load(areas, (j + r) * length + k, LANES)
            if k + LANES <= length:
                store(dst, row + k, s, LANES)
            else:
                store(dst, row + k, s, length - k)
        # Rows with the same window are copies of the first.
        for oh in range(get(target, j + r) + 1, get(target, j + r + 1)):
            copy(dst, row, dst, to + oh * length, length)


@_inline
def span_windows(sums, W, columns, areas, divide, j, runs, target, dst, to, length):
    """Sum the wide windows of `sums`, one after the other."""
    starts, ends = columns
    for r in range(runs):
        for oh in range(get(target, j + r), get(target, j + r + 1)):
            for ow in range(length):
                s = span(sums, r * W + get(starts, ow), get(ends, ow) - get(starts, ow))
                if divide:
                    s /= get(areas, (j + r) * length + ow)
                put(dst, to + oh * length + ow, s)


@_kernel
def sum_windows(src, dst, H, W, inner, oH, oW, jobs, target, columns, picks, firsts, shape, weights, average, lo, hi):
    """Sum the windows of the units `lo` to `hi`, contiguous layout."""
    rolled()
    packed, flat, count, tallest, narrowest, widest, registers = shape
    if flat and widest == 0:
        # The windows are equal runs of memory, one after the other.
        for i in range(lo, hi):
            put(dst, i, span(src, i * W, W) / get(weights, 0))
        return

    slab = packed if packed > 0 else max(1, SLAB // (W if average else W * tallest))
    slab = min(slab, hi - lo)
    slack = (registers + 4) * LANES
    sums = scratch(src, (slab * count if packed else slab) * W + slack)
    scaled = scratch(src, 0 if average else slab * (H if packed > 0 else tallest) * W + slack)
    while lo < hi:
        if packed > 0:
            # Whole planes: their sums are in a row, and so are their windows.
            plane, j, n = lo, 0, min(slab, hi - lo)
            rows, width = (1, n * H * W) if flat else (n * count, W)
            runs, length = 1, n * oH * oW
            begin, end = 0, n * H * W
        else:
            # Rows of one plane.
            plane, j = lo // count, lo % count
            n = min(slab, hi - lo, count - j)
            rows, width = n, W
            runs, length = n, oW
            begin = get(jobs, 2 * j) * W
            end = (get(jobs, 2 * (j + n - 1)) + get(jobs, 2 * (j + n - 1) + 1)) * W
        if average:
            sum_rows(src, plane * H * W, width, jobs, j, rows, sums)
        else:
            scale(src, plane * H * W + begin, end - begin, weights, begin, scaled)
            sum_rows(scaled, -begin, width, jobs, j, rows, sums)
        to = plane * oH * oW
        if widest > 0:
            pick_windows(
                sums, W, picks, firsts, narrowest, widest, registers, weights, average, j, runs, target, dst, to, length
            )
        else:
            span_windows(sums, W, columns, weights, average, j, runs, target, dst, to, length)
        lo += n


@_kernel
def sum_pixels(src, dst, H, W, inner, oH, oW, jobs, target, columns, weights, average, lo, hi):
    """Do what `sum_windows` does, channels_last layout: whole pixels of `inner` channels are added.

    A window is worked through in tiles of pixels.
    Within a tile, 64 channels at a time are summed in four registers.
    """
    starts, ends = columns
    count = target.size - 1
    pixels = max(1, min(64, TILE // inner))
    sums = scratch(src, inner + LANES)
    j = lo % count
    plane = lo // count
    for _ in range(lo, hi):
        first_row = (plane * oH + target[j]) * oW * inner
        for ow in range(oW):
            top, bottom = jobs[2 * j], jobs[2 * j] + jobs[2 * j + 1]
            kw = get(ends, ow) - get(starts, ow)
            tile_width = min(kw, pixels)
            tile_height = pixels // tile_width
            for ih0 in range(top, bottom, tile_height):
                ih1 = min(ih0 + tile_height, bottom)
                for iw0 in range(get(starts, ow), get(ends, ow), tile_width):
                    iw1 = min(iw0 + tile_width, get(ends, ow))
                    fresh = ih0 == top and iw0 == get(starts, ow)
                    add_tile(src, plane * H * W, W, inner, ih0, ih1, iw0, iw1, weights, not average, sums, fresh)
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
def add_pieces(pieces, dst, inner, oH, oW, jobs, target, areas, lo, hi):
    """Add up the pieces ``top[j]`` to ``bottom[j]`` of every window, and divide by the window's area.

    The sum is kept in float64: there is one addition for `PIECE` elements.
    """
    count = target.size - 1
    rows = jobs[2 * count - 2] + jobs[2 * count - 1]
    length = oW * inner
    j = lo % count
    plane = lo // count
    for _ in range(lo, hi):
        for i in range(length):
            s = 0.0
            for piece in range(jobs[2 * j], jobs[2 * j] + jobs[2 * j + 1]):
                s += get(pieces, (plane * rows + piece) * length + i)
            s /= get(areas, j * oW + i // inner)
            for oh in range(target[j], target[j + 1]):
                put(dst, (plane * oH + oh) * length + i, s)
        j += 1
        if j == count:
            j = 0
            plane += 1


@_parallel
def sum_windows_parallel(
    src, dst, H, W, inner, oH, oW, jobs, target, columns, picks, firsts, shape, weights, average, count, threads
):
    """Share the jobs of `sum_windows` out to threads."""
    for t in prange(threads):
        lo, hi = t * count // threads, (t + 1) * count // threads
        sum_windows(src, dst, H, W, inner, oH, oW, jobs, target, columns, picks, firsts, shape, weights, average, lo, hi)


@_parallel
def sum_pixels_parallel(src, dst, H, W, inner, oH, oW, jobs, target, columns, weights, average, count, threads):
    """Share the jobs of `sum_pixels` out to threads."""
    for t in prange(threads):
        lo, hi = t * count // threads, (t + 1) * count // threads
        sum_pixels(src, dst, H, W, inner, oH, oW, jobs, target, columns, weights, average, lo, hi)


class Plan(NamedTuple):
    """How the windows of ``(H, W)`` planes are summed to ``(oH, oW)`` planes."""

    kernels: tuple  # for one thread and for several
    arguments: tuple  # what the kernels get beside the arrays: sizes and tables
    units: int  # how many a plane is divided into, for threads to share out
    pieces: tuple | None  # where windows are cut: how many pieces a plane has, and how `add_pieces` adds them up


@lru_cache(maxsize=1024)
def plan(H, W, oH, oW, inner, dtype, average):
    """Return the `Plan` for arrays of `dtype`; it is kept for the next call."""
    dtype = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    if inner == 1 and oW == 1 and average and H % oH == 0:
        runs = _plan_runs(H * W // oH, oH, dtype)
        if runs:
            return runs
    if inner == 1 and W == 1 and not average and oH % H == 0 and oH * oW <= PACK:
        H, W, oH, oW = 1, H, 1, oH * oW  # the gradient of that: each element becomes a run

    starts, ends = pooling_windows(H, oH)
    columns = np.stack(pooling_windows(W, oW))
    widths = columns[1] - columns[0]
    # Neighbouring rows with the same window are computed once.
    new = np.flatnonzero((np.diff(starts, prepend=-1) != 0) | (np.diff(ends, prepend=-1) != 0))
    starts, ends, target = starts[new], ends[new], np.append(new, oH)
    weights = np.outer(ends - starts, widths) if average else 1 / np.outer(*map(_widths, (oH, oW), (H, W)))
    rows = max(1, min(PIECE_ROWS, PIECE // int(widths.max())))
    counts = -(-(ends - starts) // rows)
    pieces = None
    if counts.max() > 1:
        last = np.cumsum(counts)
        areas = weights if average else np.ones((len(new), oW))
        pieces = last[-1] * oW * inner, _jobs(last - counts, counts), target, areas.astype(dtype).ravel()
        nth = np.arange(last[-1]) - np.repeat(last - counts, counts)
        starts = np.repeat(starts, counts) + nth * rows
        ends = np.minimum(starts + rows, np.repeat(ends, counts))
        target = np.arange(last[-1] + 1)
        weights = np.ones((last[-1], oW)) if average else weights
        oH = last[-1]
    heights = ends - starts
    count = len(starts)
    if inner > 1:
        tables = _jobs(starts, heights), target, columns, weights.astype(dtype).ravel(), average
        return Plan((sum_pixels, sum_pixels_parallel), (H, W, inner, oH, oW, *tables), count, pieces)

    packed = flat = 0
    picks, firsts, narrowest, widest, registers = _NO_PICKS
    if widths.max() <= NARROW:
        at, wide = columns[0], widths > widths.min()
        elements = max(H * W, oH * oW, count * W)
        if pieces is None and elements <= PACK:
            packed = PACK // elements
            flat = int(count == H and heights.max() == 1)
            repeats = np.diff(target)
            at = np.repeat(np.arange(count), repeats)[:, None] * W + at
            at = (np.arange(packed)[:, None] * count * W + at.ravel()).ravel()
            wide = np.tile(wide, oH * packed)
            weights = np.tile(np.repeat(weights, repeats, axis=0) if average else weights, (packed, 1))
            starts = (np.arange(packed)[:, None] * H + starts).ravel()
            heights = np.tile(heights, packed)
            target = np.array([0, 1])
        narrowest, widest = widths.min(), widths.max()
        picks, firsts, registers = _picks(at, wide)
    shape = np.array([packed, flat, count, heights.max(), narrowest, widest, registers])
    weights = np.append(weights, np.ones(LANES)).astype(dtype)
    tables = _jobs(starts, heights), target, columns, picks, firsts, shape, weights, average
    kernels = sum_windows, sum_windows_parallel
    return Plan(kernels, (H, W, inner, oH, oW, *tables), 1 if packed else count, pieces)


_NO_PICKS = np.zeros((2, 0), np.int32), np.zeros(0, np.int64), 0, 0, 0


def _plan_runs(length, runs, dtype):
    """Return the plan for windows that are equal runs of memory, or None where that has no advantage."""
    if length <= NARROW:
        return None
    cuts = next(cuts for cuts in range(-(-length // PIECE), length + 1) if length % cuts == 0)
    if cuts > 1 and length // cuts < PIECE // 8:
        return None
    pieces = None
    if cuts > 1:
        jobs = _jobs(np.arange(runs) * cuts, np.full(runs, cuts))
        pieces = runs * cuts, jobs, np.arange(runs + 1), np.full(runs, length, dtype)
    picks, firsts, *_ = _NO_PICKS
    area = np.full(1, 1 if pieces else length, dtype)
    tables = firsts, firsts, np.stack([firsts, firsts]), picks, firsts, np.array([1, 1, 1, 1, 0, 0, 0]), area, True
    return Plan((sum_windows, sum_windows_parallel), (1, length // cuts, 1, 1, 1, *tables), runs * cuts, pieces)


def _widths(size, windows):
    return np.subtract(*reversed(pooling_windows(size, windows)))


def _jobs(top, height):
    return np.stack([top, height], axis=1).ravel()


def _picks(at, wide):
    fill = -len(at) % LANES
    at = np.append(at, np.full(fill, at[-1])).reshape(-1, LANES)
    firsts = at.min(axis=1)
    index = (at - firsts[:, None]).ravel()
    extra = np.where(np.append(wide, np.zeros(fill, bool)), index, -1)
    return np.stack([index, extra]).astype(np.int32), firsts, int(index.max() // LANES + 1)


def forward(input, output, planes, H, W, inner, oH, oW, threads):
    """Fill `output` with the means of the windows of `input`, on up to `threads` threads."""
    _sum(input, output, planes, H, W, inner, oH, oW, True, threads)


def backward(grad_output, grad_input, planes, H, W, inner, oH, oW, threads):
    """Fill `grad_input` with the gradients of `forward`'s inputs, given those of its outputs, on up to `threads`
    threads."""
    _sum(grad_output, grad_input, planes, oH, oW, inner, H, W, False, threads)


def _sum(src, dst, planes, H, W, inner, oH, oW, average, threads):
    # Planes whose windows are runs of memory are planes of one row.
    kernels, arguments, units, pieces = plan(H, W, oH, oW, inner, src.dtype, average)
    count = planes * units
    threads = min(threads, count, 1 + planes * inner * max(H * W, oH * oW) // GRAIN)
    if pieces is None:
        run(*kernels, (src, dst, *arguments), count, threads)
        return
    size, jobs, target, areas = pieces
    sums = np.empty(planes * size, areas.dtype)
    run(*kernels, (src, sums, *arguments), count, threads)
    add_pieces(sums, dst, inner, oH, oW, jobs, target, areas, 0, planes * (target.size - 1))


keep_compiled(sum_windows, sum_windows_parallel, sum_pixels, sum_pixels_parallel, add_pieces)
