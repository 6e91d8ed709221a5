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

# When the sums are weighted: each element before by its share, one over the area of its window; or the sums after,
# divided by the areas of their windows, or multiplied by one over these, where that is the same number.
SHARES, AREAS, FACTORS = 0, 1, 2

# Long rows are added this many at a time: as few streams of memory as the hardware follows.
ROWS = 8

# The pixels of a wide window are added this many in a row, and then their sums: a chain of additions stays short.
CHAIN = 16

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
        for d in range(0, height, ROWS):
            rows = min(ROWS, height - d)
            begin = first + d * W
            end = begin + (rows - 1) * W + LANES
            for i in range(0, W, LANES):
                if end + i <= src.size:
                    s = add_rows(src, begin + i, W, rows, LANES)
                else:
                    s = add_rows(src, begin + i, W, rows, W - i)
                if d > 0:
                    s = s + load(sums, to + i, LANES)
                store(sums, to + i, s, LANES)


@_inline
def scale(src, first, n, inner, shares, p, scaled):
    """Set ``scaled[: n * inner]`` to `n` pixels of `src`, each multiplied by its own of the `shares` from `p` on."""
    if inner == 1:
        for i in range(0, n, LANES):
            lanes = min(n - i, LANES)
            s = load(src, first + i, LANES) if lanes == LANES else load(src, first + i, lanes)
            store(scaled, i, s * load(shares, p + i, LANES), LANES)
    else:
        for pixel in range(n):
            share = fill(scaled, get(shares, p + pixel))
            for c in range(0, inner, LANES):
                i = pixel * inner + c
                s = load(src, first + i, LANES) if first + i + LANES <= src.size else load(src, first + i, inner - c)
                store(scaled, i, s * share, LANES)


@_inline
def copy(src, at, dst, to, n):
    """Set ``dst[to:][:n]`` to ``src[at:][:n]``; only the last few elements need a mask, which costs."""
    full = n // LANES * LANES
    for i in range(0, full, LANES):
        store(dst, to + i, load(src, at + i, LANES), LANES)
    if full < n:
        store(dst, to + full, load(src, at + full, n - full), n - full)


@_inline
def pick_windows(sums, W, picks, first, narrowest, widest, registers, weights, weighting, j, runs, target, dst, to, length):
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
            if weighting == AREAS:
                s = s / load(weights, (j + r) * length + k, LANES)
            elif weighting == FACTORS:
                s = s * load(weights, (j + r) * length + k, LANES)
            if k + LANES <= length:
                store(dst, row + k, s, LANES)
            else:
                store(dst, row + k, s, length - k)
        # Rows with the same window are copies of the first.
        for oh in range(get(target, j + r) + 1, get(target, j + r + 1)):
            copy(dst, row, dst, to + oh * length, length)


@_inline
def span_windows(sums, W, columns, weights, weighting, j, runs, target, dst, to, length):
    """Sum the wide windows of `sums`, one after the other."""
    starts, ends = columns
    for r in range(runs):
        for oh in range(get(target, j + r), get(target, j + r + 1)):
            for ow in range(length):
                s = span(sums, r * W + get(starts, ow), get(ends, ow) - get(starts, ow))
                if weighting == AREAS:
                    s /= get(weights, (j + r) * length + ow)
                elif weighting == FACTORS:
                    s *= get(weights, (j + r) * length + ow)
                put(dst, to + oh * length + ow, s)


@_inline
def load4(src, i):
    """Return 64 elements of `src` from `i` on, in four registers."""
    return (
        load(src, i, LANES),
        load(src, i + LANES, LANES),
        load(src, i + 2 * LANES, LANES),
        load(src, i + 3 * LANES, LANES),
    )


@_inline
def sum_pixels(sums, W, inner, columns, weights, weighting, j, n, target, dst, to, oW):
    """Sum the windows of `sums`, where a pixel is `inner` channels, sixteen channels at a time."""
    starts, ends = columns
    for r in range(n):
        row = to + get(target, j + r) * oW * inner
        for ow in range(oW):
            kw = get(ends, ow) - get(starts, ow)
            weight = fill(sums, 1 if weighting == SHARES else get(weights, (j + r) * oW + ow))
            first = (r * W + get(starts, ow)) * inner
            at = row + ow * inner
            c = 0
            while c + 4 * LANES <= inner:
                s0 = s1 = s2 = s3 = fill(sums, 0)
                for start in range(0, kw, CHAIN):
                    t0, t1, t2, t3 = load4(sums, first + start * inner + c)
                    for d in range(start + 1, min(start + CHAIN, kw)):
                        a0, a1, a2, a3 = load4(sums, first + d * inner + c)
                        t0, t1, t2, t3 = t0 + a0, t1 + a1, t2 + a2, t3 + a3
                    s0, s1, s2, s3 = s0 + t0, s1 + t1, s2 + t2, s3 + t3
                if weighting == AREAS:
                    s0, s1, s2, s3 = s0 / weight, s1 / weight, s2 / weight, s3 / weight
                elif weighting == FACTORS:
                    s0, s1, s2, s3 = s0 * weight, s1 * weight, s2 * weight, s3 * weight
                store(dst, at + c, s0, LANES)
                store(dst, at + c + LANES, s1, LANES)
                store(dst, at + c + 2 * LANES, s2, LANES)
                store(dst, at + c + 3 * LANES, s3, LANES)
                c += 4 * LANES
            while c < inner:
                s = fill(sums, 0)
                for start in range(0, kw, CHAIN):
                    s = s + add_rows(sums, first + start * inner + c, inner, min(CHAIN, kw - start), LANES)
                if weighting == AREAS:
                    s = s / weight
                elif weighting == FACTORS:
                    s = s * weight
                if c + LANES <= inner:
                    store(dst, at + c, s, LANES)
                else:
                    store(dst, at + c, s, inner - c)
                c += LANES
        for oh in range(get(target, j + r) + 1, get(target, j + r + 1)):
            copy(dst, row, dst, to + oh * oW * inner, oW * inner)


@_kernel
def sum_windows(src, dst, H, W, inner, oH, oW, jobs, target, columns, picks, firsts, shape, weights, weighting, lo, hi):
    """Sum the windows of the units `lo` to `hi`, contiguous layout."""
    rolled()
    packed, flat, count, tallest, narrowest, widest, registers = shape
    average = weighting != SHARES
    if flat and widest == 0:
        # The windows are equal runs of memory, one after the other.
        for i in range(lo, hi):
            put(dst, i, span(src, i * W, W) / get(weights, 0))
        return

    pitch = W * inner
    slab = packed if packed > 0 else max(1, SLAB // (pitch if average else pitch * tallest))
    slab = min(slab, hi - lo)
    slack = (registers + 4) * LANES
    sums = scratch(src, (slab * count if packed else slab) * pitch + slack)
    scaled = scratch(src, 0 if average else slab * (H if packed > 0 else tallest) * pitch + slack)
    while lo < hi:
        if packed > 0:
            # Whole planes: their sums are in a row, and so are their windows.
            plane, j, n = lo, 0, min(slab, hi - lo)
            rows, width = (1, n * H * pitch) if flat else (n * count, pitch)
            runs, length = 1, n * oH * oW
            begin, end = 0, n * H * W
        else:
            # Rows of one plane.
            plane, j = lo // count, lo % count
            n = min(slab, hi - lo, count - j)
            rows, width = n, pitch
            runs, length = n, oW
            begin = get(jobs, 2 * j) * W
            end = (get(jobs, 2 * (j + n - 1)) + get(jobs, 2 * (j + n - 1) + 1)) * W
        if average:
            sum_rows(src, plane * H * pitch, width, jobs, j, rows, sums)
        else:
            scale(src, plane * H * pitch + begin * inner, end - begin, inner, weights, begin, scaled)
            sum_rows(scaled, -begin * inner, width, jobs, j, rows, sums)
        to = plane * oH * oW * inner
        if inner > 1:
            sum_pixels(sums, W, inner, columns, weights, weighting, j, runs, target, dst, to, oW)
        elif widest > 0:
            pick_windows(
                sums, W, picks, firsts, narrowest, widest, registers, weights, weighting, j, runs, target, dst, to, length
            )
        else:
            span_windows(sums, W, columns, weights, weighting, j, runs, target, dst, to, length)
        lo += n


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
    src, dst, H, W, inner, oH, oW, jobs, target, columns, picks, firsts, shape, weights, weighting, count, threads
):
    """Share the jobs of `sum_windows` out to threads."""
    for t in prange(threads):
        lo, hi = t * count // threads, (t + 1) * count // threads
        sum_windows(src, dst, H, W, inner, oH, oW, jobs, target, columns, picks, firsts, shape, weights, weighting, lo, hi)


class Plan(NamedTuple):
    """How the windows of ``(H, W)`` planes are summed to ``(oH, oW)`` planes."""

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
        if H * W <= PACK:
            H, W, oW, oH = 1, H * W, oH, 1
    if inner == 1 and W == 1 and not average and oH % H == 0 and oH * oW <= PACK:
        H, W, oH, oW = 1, H, 1, oH * oW  # the gradient of that: each element becomes a run

    starts, ends = pooling_windows(H, oH)
    columns = np.stack(pooling_windows(W, oW))
    widths = columns[1] - columns[0]
    # Neighbouring rows with the same window are computed once.
    new = np.flatnonzero((np.diff(starts, prepend=-1) != 0) | (np.diff(ends, prepend=-1) != 0))
    starts, ends, target = starts[new], ends[new], np.append(new, oH)
    weights = np.outer(ends - starts, widths)
    if not average:
        areas = np.outer(*map(_widths, (oH, oW), (H, W)))
        average = areas.min() == areas.max()
        weights = np.full_like(weights, areas[0, 0]) if average else 1 / areas
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
    weighting = SHARES
    if average:
        exact = (np.frexp(weights)[0] == 0.5).all()
        weighting, weights = (FACTORS, 1 / weights) if exact else (AREAS, weights)

    packed = flat = 0
    picks, firsts, narrowest, widest, registers = _NO_PICKS
    if inner == 1 and widths.max() <= NARROW:
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
    tables = _jobs(starts, heights), target, columns, picks, firsts, shape, weights, weighting
    return Plan((H, W, inner, oH, oW, *tables), 1 if packed else count, pieces)


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
    tables = firsts, firsts, np.stack([firsts, firsts]), picks, firsts, np.array([1, 1, 1, 1, 0, 0, 0]), area, AREAS
    return Plan((1, length // cuts, 1, 1, 1, *tables), runs * cuts, pieces)


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
    arguments, units, pieces = plan(H, W, oH, oW, inner, src.dtype, average)
    count = planes * units
    elements = planes * inner * (H * W + oH * oW)
    if elements >= 2 * GRAIN and threads > 1 and count > 1:
        threads = min(threads, count, elements // GRAIN)
    else:
        threads = 1
    if pieces is None:
        run(sum_windows, sum_windows_parallel, (src, dst, *arguments), count, threads)
        return
    size, jobs, target, areas = pieces
    sums = np.empty(planes * size, areas.dtype)
    run(sum_windows, sum_windows_parallel, (src, sums, *arguments), count, threads)
    add_pieces(sums, dst, inner, oH, oW, jobs, target, areas, 0, planes * (target.size - 1))


keep_compiled(sum_windows, sum_windows_parallel, add_pieces)
