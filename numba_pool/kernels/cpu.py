"""The CPU kernels: flat arrays in, flat arrays filled.

Both directions are one computation, the sum over windows.
The forward sums the windows of the input and divides each sum by its window's area.
The backward divides each gradient by its window's area, then sums, for every element of the input, over the outputs whose windows
hold it; these form a window too, the one of the same formula with the sizes' roles swapped.

So a kernel speaks of `src` and `dst`, whatever the direction: flat views of contiguous memory, ``(planes, H, W, inner)`` and
``(planes, oH, oW, inner)``.
A contiguous tensor has ``planes = N * C`` and ``inner = 1``, a channels_last one ``planes = N`` and ``inner = C``.

Work comes in jobs.
A job is a run of whole rows of one plane, ``top[j]`` up to ``bottom[j]``, that is summed into the rows ``target[j]`` up to
``target[j + 1]`` of `dst`: several, where neighbouring outputs have the same window.
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

# A window of more elements is cut into pieces, one job each: a chain of additions stays short, and every thread finds work.
PIECE = 4096

# Windows this narrow are summed for all positions of a row together, sixteen at a time; wider ones one by one.
NARROW = 8

# The row sums that wait for their windows, in elements: few enough to stay in a core's first-level cache.
SLAB = 1024

# Elements per thread below which a second thread costs more than it gains.
GRAIN = 16384

_inline = njit(nogil=True, error_model="numpy", forceinline=True)
_kernel = njit(nogil=True, error_model="numpy")
_parallel = njit(nogil=True, error_model="numpy", parallel=True)


@_inline
def add_row(src, first, length, out, at, fresh):
    """Add ``src[first:][:length]`` to ``out[at:][:length]``, or copy it there if `fresh`; padding lanes become zero."""
    for i in range(0, length, LANES):
        lanes = length - i
        row = load(src, first + i, LANES) if lanes >= LANES else load(src, first + i, lanes)
        if not fresh:
            row = row + load(out, at + i, LANES)
        store(out, at + i, row, LANES)


@_inline
def span(src, first, n):
    """Return the sum of ``src[first : first + n]``, kept in sixteen lanes until the end."""
    s = load(src, first, n)
    i = LANES
    while i + 4 * LANES <= n:
        a = first + i
        s = s + (
            (load(src, a, LANES) + load(src, a + LANES, LANES))
            + (load(src, a + 2 * LANES, LANES) + load(src, a + 3 * LANES, LANES))
        )
        i += 4 * LANES
    while i < n:
        s = s + load(src, first + i, n - i)
        i += LANES
    return total(s)


@_kernel
def sum_windows(src, dst, H, W, inner, oH, oW, jobs, columns, divide, lo, hi):
    """Sum the windows of jobs `lo` to `hi` of all planes, contiguous layout; with `divide`, average them.

    Rows first: the rows of a window are added up element by element, sixteen columns at once, in the order of memory.
    Then columns: the row of sums is cut into the windows.
    """
    top, bottom, target = jobs
    starts, ends = columns
    count = top.size - 1
    pitch = (W + LANES - 1) // LANES * LANES
    out_pitch = (oW + LANES - 1) // LANES * LANES
    slab = max(1, SLAB // pitch)
    narrowest, widest = W, 0
    widths = scratch(src, out_pitch)
    for ow in range(oW):
        kw = ends[ow] - starts[ow]
        narrowest, widest = min(narrowest, kw), max(widest, kw)
        put(widths, ow, kw)
    row_sums = scratch(src, slab * pitch + LANES)
    window_sums = scratch(src, 2 * row_sums.size)
    picked = scratch(src, slab * out_pitch)
    pick = np.empty(oW, np.int64)
    for ow in range(oW):
        pick[ow] = starts[ow] + (row_sums.size if ends[ow] - starts[ow] > narrowest else 0)

    j = lo % count
    plane = lo // count
    for first_job in range(lo, hi, slab):
        n = min(slab, hi - first_job)
        j0, plane0 = j, plane
        for r in range(n):
            row = (plane * H + top[j]) * W
            for ih in range(bottom[j] - top[j]):
                add_row(src, row + ih * W, W, row_sums, r * pitch, ih == 0)
            j += 1
            if j == count:
                j = 0
                plane += 1

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
                    put(picked, r * out_pitch + ow, get(window_sums, r * pitch + pick[ow]))
        else:
            for r in range(n):
                for ow in range(oW):
                    put(picked, r * out_pitch + ow, span(row_sums, r * pitch + starts[ow], ends[ow] - starts[ow]))

        j, plane = j0, plane0
        for r in range(n):
            for i in range(0, oW, LANES):
                s = load(picked, r * out_pitch + i, LANES)
                if divide:
                    s = s / (fill(src, bottom[j] - top[j]) * load(widths, i, LANES))
                for oh in range(target[j], target[j + 1]):
                    store(dst, (plane * oH + oh) * oW + i, s, oW - i)
            j += 1
            if j == count:
                j = 0
                plane += 1


@_kernel
def sum_spans(src, dst, H, W, inner, oH, oW, jobs, columns, divide, lo, hi):
    """Do what `sum_windows` does where a window holds whole rows, so is one run of memory: 1x1 outputs above all."""
    top, bottom, target = jobs
    count = top.size - 1
    j = lo % count
    plane = lo // count
    for job in range(lo, hi):
        n = (bottom[j] - top[j]) * W
        s = span(src, (plane * H + top[j]) * W, n)
        if divide:
            s = s / n
        for oh in range(target[j], target[j + 1]):
            put(dst, plane * oH + oh, s)
        j += 1
        if j == count:
            j = 0
            plane += 1


@_kernel
def sum_pixels(src, dst, H, W, inner, oH, oW, jobs, columns, divide, lo, hi):
    """Sum the windows of jobs `lo` to `hi` of all planes, channels_last layout: whole pixels of `inner` channels are added."""
    top, bottom, target = jobs
    starts, ends = columns
    count = top.size - 1
    sums = scratch(src, inner + LANES)
    j = lo % count
    plane = lo // count
    for job in range(lo, hi):
        for ow in range(oW):
            for ih in range(top[j], bottom[j]):
                for iw in range(starts[ow], ends[ow]):
                    fresh = ih == top[j] and iw == starts[ow]
                    add_row(src, ((plane * H + ih) * W + iw) * inner, inner, sums, 0, fresh)
            area = fill(src, (bottom[j] - top[j]) * (ends[ow] - starts[ow]))
            for i in range(0, inner, LANES):
                s = load(sums, i, LANES)
                if divide:
                    s = s / area
                for oh in range(target[j], target[j + 1]):
                    store(dst, ((plane * oH + oh) * oW + ow) * inner + i, s, inner - i)
        j += 1
        if j == count:
            j = 0
            plane += 1


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
    for job in range(lo, hi):
        for i in range(length):
            s = 0.0
            for piece in range(top[j], bottom[j]):
                s += get(pieces, (plane * bottom[count - 1] + piece) * length + i)
            s /= get(areas, target[j] * oW + i // inner)
            for oh in range(target[j], target[j + 1]):
                put(dst, (plane * oH + oh) * length + i, s)
        j += 1
        if j == count:
            j = 0
            plane += 1


@_kernel
def divide_by_areas(src, dst, inner, areas, lo, hi):
    """Divide the pixels `lo` to `hi`, each of `inner` channels, by the areas of their windows; `areas` repeats itself."""
    p = lo % areas.size
    if inner > 1:
        for pixel in range(lo, hi):
            area = fill(src, get(areas, p))
            for i in range(0, inner, LANES):
                at = pixel * inner + i
                store(dst, at, load(src, at, inner - i) / area, inner - i)
            p = p + 1 if p + 1 < areas.size else 0
    else:
        at = lo
        while at < hi:
            n = min(areas.size - p, hi - at)
            for i in range(0, n, LANES):
                store(dst, at + i, load(src, at + i, n - i) / load(areas, p + i, n - i), n - i)
            at += n
            p = 0


@_parallel
def sum_windows_parallel(src, dst, H, W, inner, oH, oW, jobs, columns, divide, count, threads):
    """Share the jobs of `sum_windows` out to threads."""
    for t in prange(threads):
        sum_windows(src, dst, H, W, inner, oH, oW, jobs, columns, divide, t * count // threads, (t + 1) * count // threads)


@_parallel
def sum_spans_parallel(src, dst, H, W, inner, oH, oW, jobs, columns, divide, count, threads):
    """Share the jobs of `sum_spans` out to threads."""
    for t in prange(threads):
        sum_spans(src, dst, H, W, inner, oH, oW, jobs, columns, divide, t * count // threads, (t + 1) * count // threads)


@_parallel
def sum_pixels_parallel(src, dst, H, W, inner, oH, oW, jobs, columns, divide, count, threads):
    """Share the jobs of `sum_pixels` out to threads."""
    for t in prange(threads):
        sum_pixels(src, dst, H, W, inner, oH, oW, jobs, columns, divide, t * count // threads, (t + 1) * count // threads)


@_parallel
def add_pieces_parallel(pieces, dst, inner, oH, oW, jobs, areas, count, threads):
    """Share the jobs of `add_pieces` out to threads."""
    for t in prange(threads):
        add_pieces(pieces, dst, inner, oH, oW, jobs, areas, t * count // threads, (t + 1) * count // threads)


@_parallel
def divide_by_areas_parallel(src, dst, inner, areas, count, threads):
    """Share the pixels of `divide_by_areas` out to threads."""
    for t in prange(threads):
        divide_by_areas(src, dst, inner, areas, t * count // threads, (t + 1) * count // threads)


class Plan(NamedTuple):
    """The tables for summing windows of ``(H, W)`` planes to ``(oH, oW)`` planes."""

    jobs: np.ndarray
    columns: np.ndarray
    pieces: np.ndarray | None
    areas: np.ndarray


@lru_cache(maxsize=1024)
def plan(H, W, oH, oW, dtype):
    """Return the `Plan` of two plane sizes; it is kept for the next call."""
    starts, ends = pooling_windows(H, oH)
    columns = np.stack(pooling_windows(W, oW))
    widths = columns[1] - columns[0]
    # Neighbouring rows with the same window are computed once.
    new = np.flatnonzero((np.diff(starts, prepend=-1) != 0) | (np.diff(ends, prepend=-1) != 0))
    starts, ends, target = starts[new], ends[new], np.append(new, oH)
    rows = max(1, PIECE // int(widths.max()))
    counts = -(-(ends - starts) // rows)
    pieces = None
    if counts.max() > 1:
        last = np.cumsum(counts)
        pieces = _jobs(last - counts, last, target)
        nth = np.arange(last[-1]) - np.repeat(last - counts, counts)
        starts = np.repeat(starts, counts) + nth * rows
        ends = np.minimum(starts + rows, np.repeat(ends, counts))
        target = np.arange(last[-1] + 1)
    areas = np.outer(np.diff(np.stack(pooling_windows(H, oH)), axis=0), widths).astype(dtype).ravel()
    # Repeated, so that tiny planes share their loops.
    areas = np.tile(areas, max(1, 256 // areas.size))
    return Plan(_jobs(starts, ends, target), columns, pieces, areas)


def _jobs(top, bottom, target):
    return np.stack([np.append(top, 0), np.append(bottom, 0), target])


def _sum(src, dst, planes, H, W, inner, oH, oW, divide, threads):
    dtype = np.dtype(np.float64 if src.dtype == np.float64 else np.float32)
    tables = plan(H, W, oH, oW, dtype)
    if inner > 1:
        name = "sum_pixels"
    elif oW == 1:
        name = "sum_spans"
    else:
        name = "sum_windows"
    count = planes * (tables.jobs.shape[1] - 1)
    threads = min(threads, count, 1 + planes * inner * max(H * W, oH * oW) // GRAIN)
    kernel, parallel_kernel = KERNELS[name]
    if tables.pieces is None:
        run(kernel, parallel_kernel, (src, dst, H, W, inner, oH, oW, tables.jobs, tables.columns, divide), count, threads)
        return
    rows = tables.jobs.shape[1] - 1
    pieces = np.empty(count * oW * inner, dtype)
    run(kernel, parallel_kernel, (src, pieces, H, W, inner, rows, oW, tables.jobs, tables.columns, False), count, threads)
    areas = tables.areas if divide else np.ones_like(tables.areas)
    count = planes * (tables.pieces.shape[1] - 1)
    run(*KERNELS["add_pieces"], (pieces, dst, inner, oH, oW, tables.pieces, areas), count, min(threads, count))


def forward(input, output, planes, H, W, inner, oH, oW, threads):
    """Fill `output` with the means of the windows of `input`."""
    _sum(input, output, planes, H, W, inner, oH, oW, True, threads)


def backward(grad_output, grad_input, planes, H, W, inner, oH, oW, threads):
    """Fill `grad_input` with the gradients of the inputs of `forward`, given those of its outputs."""
    dtype = np.dtype(np.float64 if grad_output.dtype == np.float64 else np.float32)
    shares = np.empty(grad_output.size, dtype)
    pixels = planes * oH * oW
    arguments = (grad_output, shares, inner, plan(H, W, oH, oW, dtype).areas)
    run(*KERNELS["divide_by_areas"], arguments, pixels, min(threads, 1 + pixels * inner // GRAIN))
    shares.flags.writeable = False  # as tensors' arrays are: for Numba it is part of the type
    _sum(shares, grad_input, planes, oH, oW, inner, H, W, False, threads)


KERNELS = {
    "sum_windows": (sum_windows, sum_windows_parallel),
    "sum_spans": (sum_spans, sum_spans_parallel),
    "sum_pixels": (sum_pixels, sum_pixels_parallel),
    "add_pieces": (add_pieces, add_pieces_parallel),
    "divide_by_areas": (divide_by_areas, divide_by_areas_parallel),
}

for _pair in KERNELS.values():
    keep_compiled(*_pair)
