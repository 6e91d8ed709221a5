"""The CUDA kernels: adaptive average pooling, forward and backward, at the memory's speed.

One idea carries all of them.
Forward sums, for every output, the inputs of its window.
Backward sums, for every input, the outputs whose window holds it; and those outputs are a window too, the one that
the formula gives when the two sizes change places.
So both directions are the same *window sum* from a source ``src`` of ``sH`` by ``sW`` elements to a destination ``dst``
of ``dH`` by ``dW``.
They differ in one division: forward divides a finished sum by the window's area, backward divides every source element
by the area of *its* window before it is summed.
Every destination element is owned by one thread, which *gathers* what it needs: no atomic, the same bits in every run.

A second idea removes the planes.
Planes lie one below the other in memory, and the windows of a plane end where the plane ends.
So ``planes`` planes of ``sH`` rows are one tall plane of ``planes * sH`` rows, and its windows are given by the very same
formula: line ``i`` of the tall destination starts at row ``i * sH // dH`` of the tall source.

========== ============== ==================== =====================================================================
kernel     layout         windows              what a block does
========== ============== ==================== =====================================================================
tiles      contiguous     small                brings a piece of the source to shared memory and makes many outputs
strips     contiguous     tall or wide         sums columns in registers, then the columns of each window
pixels     channels_last  small                one thread, one pack of channels of one output
bundles    channels_last  large                many threads share a window's pixels
finish     both           parts of a window    adds the parts of windows that several blocks shared, in fixed order
========== ============== ==================== =====================================================================

The order of every sum depends on the sizes alone: not on the batch, the alignment, the device or the run.
This room knows no torch: kernels take addresses and integers, and :func:`forward` and :func:`backward` say how to launch
them.
"""

from collections import namedtuple
from functools import lru_cache
from math import gcd

import numpy as np
from numba import cuda

from .. import windows
from .cuda_memory import PACK_BYTES, SIMULATED, TYPES, device_function, full_width, pack_of, types

Room = namedtuple("Room", "threads pool lines columns part warp")
Room.__doc__ = """What a block has: its threads, sums in shared memory, lines and columns in its tables, the elements that
make a part of a shared window, and the threads that copy a row together."""

# 20 KB of sums and 9 KB of tables let seven blocks of 256 threads share a multiprocessor of 228 KB (H100, H200), five one
# of 164 KB (A100).
ROOM = Room(threads=256, pool=20480 // 4, lines=256, columns=512, part=32768, warp=32)

# Numba warns of a grid of fewer than 128 blocks at every launch. Blocks without work leave at once, so small problems are
# launched with 128; the simulator, which runs blocks one by one, does without.
MIN_BLOCKS = 1 if SIMULATED else 128
MAX_BLOCKS = 2**31 - 1

start_index = device_function(windows.start_index)
end_index = device_function(windows.end_index)


def pool_size(dtype, room):
    """Return how many sums of `dtype` a block's pool of shared memory holds."""
    return room.pool * 4 // TYPES[dtype].sum().itemsize


def sum_type_of(dtype):
    """Return Numba's name of the type in which elements of `dtype` are summed."""
    return types.float64 if dtype == "float64" else types.float32


def shared_sums(dtype, size):
    """Return a function by which a kernel takes `size` sums of shared memory, where packs of 16 bytes can lie."""
    sum_type = sum_type_of(dtype)
    if SIMULATED:
        return lambda: cuda.shared.array(size, sum_type)
    return device_function(lambda: cuda.shared.array(size, sum_type, alignment=PACK_BYTES))


# --- what kernels share ------------------------------------------------------------------------------------------


@device_function
def window_length(i, size, other_size):
    """Return how many elements the window of `i` holds."""
    return end_index(i, size, other_size) - start_index(i, size, other_size)


@device_function
def strided_sum(values, i, count, stride):
    """Return ``values[i] + values[i + stride] + …``, `count` terms in four partial sums.

    Four short chains round less than a long one, and their additions need not wait for each other.
    """
    a = b = c = d = np.float32(0)
    while count >= 4:
        a += values[i]
        b += values[i + stride]
        c += values[i + 2 * stride]
        d += values[i + 3 * stride]
        i += 4 * stride
        count -= 4
    while count > 0:
        a += values[i]
        i += stride
        count -= 1
    return (a + b) + (c + d)


@device_function
def shared_sum(values, begin, end, scratch, lanes):
    """Return ``values[begin] + … + values[end - 1]`` to the first of `lanes` neighbouring threads, which share the work.

    Neighbouring threads read neighbouring values, so no two of them wait for the same bank of shared memory.
    Every thread of the block has to call it: it waits for all of them.
    """
    t = cuda.threadIdx.x
    lane = t % lanes
    scratch[t] = strided_sum(values, begin + lane, (end - begin - lane + lanes - 1) // lanes, lanes)
    cuda.syncthreads()
    total = strided_sum(scratch, t - lane, lanes, 1)
    cuda.syncthreads()
    return total


@device_function
def arrange(count, threads):
    """Return how many of `threads` stand side by side along `count` columns, so that few are left over.

    All of them, or an equal share of the columns when there are more than half as many columns as threads.
    """
    rounds = (2 * count + threads - 1) // threads
    return (count + rounds - 1) // rounds


# --- contiguous tensors, small windows ---------------------------------------------------------------------------


@lru_cache(maxsize=None)
def tile_kernel(dtype, backward, room=ROOM):
    """Make the kernel for contiguous planes with small windows: ``tiles``.

    What it buys: every byte crosses the bus once, 16 at a time, whatever the width of a row.
    A group of consecutive lines needs consecutive rows, and consecutive rows are one run of memory, even across the end
    of a plane.
    So a block copies that run as it lies, and all that is irregular (rows of 7 elements, windows that overlap) happens
    in shared memory.
    Planes that are too wide are cut into tiles of columns; then every row of a tile is a run.

    A block goes through five steps, with a barrier after each:

    1. copy the rows of a group of lines to shared memory;
    2. backward only: divide each element by the area of its window;
    3. for every line and column, sum the rows of the line's window;
    4. for every output, sum the columns of its window; forward only: divide by the area;
    5. copy the outputs, which are consecutive too, to global memory.
    """
    wide, one = pack_of(dtype, full_width(dtype)), pack_of(dtype, 1)
    load_pack, store_pack, put_pack, get_pack, width = wide.load, wide.store, wide.put, wide.get, wide.width
    load, store, get, put = one.load, one.store, one.get, one.put
    THREADS, LINES, COLUMNS, WARP = room.threads, room.lines, room.columns, room.warp
    shared_pool = shared_sums(dtype, pool_size(dtype, room))
    number, sum_type = TYPES[dtype].sum, sum_type_of(dtype)

    @device_function
    def copy_in(src, begin, pool, at, count, shift, t, team):
        """Bring ``src[begin:begin + count]`` to ``pool[at:]``: packs where 16 bytes are aligned, the ends singly."""
        head = min((-(begin + shift)) % width, count)
        packs = (count - head) // width
        for p in range(t, packs, team):
            put_pack(pool, at + head + p * width, load_pack(src, begin + head + p * width))
        for e in range(t, head, team):
            put(pool, at + e, load(src, begin + e))
        for e in range(head + packs * width + t, count, team):
            put(pool, at + e, load(src, begin + e))

    @device_function
    def copy_out(dst, begin, pool, at, count, shift, t, team):
        """Bring ``pool[at:at + count]`` to ``dst[begin:]``, in the same way."""
        head = min((-(begin + shift)) % width, count)
        packs = (count - head) // width
        for p in range(t, packs, team):
            store_pack(dst, begin + head + p * width, get_pack(pool, at + head + p * width))
        for e in range(t, head, team):
            store(dst, begin + e, get(pool, at + e))
        for e in range(head + packs * width + t, count, team):
            store(dst, begin + e, get(pool, at + e))

    @cuda.jit
    def tiles(src, dst, lines, sH, dH, sW, dW, group, across, lanes, src_shift, dst_shift):
        pool = shared_pool()
        scratch = cuda.shared.array(THREADS, sum_type)
        first = cuda.shared.array(LINES, types.int64)
        last = cuda.shared.array(LINES, types.int64)
        heights = cuda.shared.array(LINES, types.int32)
        left = cuda.shared.array(COLUMNS, types.int32)
        right = cuda.shared.array(COLUMNS, types.int32)
        widths = cuda.shared.array(COLUMNS, types.int32)
        t = cuda.threadIdx.x

        # The columns of this block, the same for all its lines: a tile of outputs, and the sources of their windows.
        across_tiles = (dW + across - 1) // across
        ow0 = cuda.blockIdx.x % across_tiles * across
        outputs = min(across, dW - ow0)
        iw0 = start_index(ow0, dW, sW)
        columns = end_index(ow0 + outputs - 1, dW, sW) - iw0
        for o in range(t, outputs, THREADS):
            left[o] = start_index(ow0 + o, dW, sW) - iw0
            right[o] = end_index(ow0 + o, dW, sW) - iw0
        if backward:
            for c in range(t, columns, THREADS):
                widths[c] = window_length(iw0 + c, sW, dW)
        # Rows in shared memory keep the alignment that they have in global memory, so their pitch may be a little longer.
        pitch = columns + (sW - columns) % width
        out_pitch = outputs + (dW - outputs) % width
        # Threads stand in rows of nx along the columns: a thread keeps its column and walks down the lines.
        nx = arrange(columns, THREADS)
        tx, ty, ny = t % nx, t // nx, THREADS // nx
        onx = arrange(outputs, THREADS)
        otx, oty, ony = t % onx, t // onx, THREADS // onx

        groups = (lines + group - 1) // group
        for g in range(cuda.blockIdx.x // across_tiles, groups, cuda.gridDim.x // across_tiles):
            line0 = g * group
            count = min(group, lines - line0)
            for i in range(t, count, THREADS):
                first[i] = start_index(line0 + i, dH, sH)
                last[i] = end_index(line0 + i, dH, sH)
            cuda.syncthreads()
            row0 = first[0]
            rows = last[count - 1] - row0

            # 1. Source rows, global to shared memory.
            begin = row0 * sW + iw0
            at = (begin + src_shift) % width
            if columns == sW:
                copy_in(src, begin, pool, at, rows * sW, src_shift, t, THREADS)
            else:
                for r in range(t // WARP, rows, THREADS // WARP):
                    copy_in(src, begin + r * sW, pool, at + r * pitch, columns, src_shift, t % WARP, WARP)
            if backward:
                for r in range(t, rows, THREADS):
                    heights[r] = window_length(row0 + r, sH, dH)
            cuda.syncthreads()

            # 2. Every element of a gradient is shared out evenly over its window.
            if backward:
                if ty < ny:
                    for c in range(tx, columns, nx):
                        for r in range(ty, rows, ny):
                            pool[at + r * pitch + c] /= number(heights[r] * widths[c])
                cuda.syncthreads()

            # 3. Sums down the rows of each line's window.
            out_at = (line0 * dW + ow0 + dst_shift) % width
            sums = max(at + rows * pitch, out_at + count * out_pitch)
            if ty < ny:
                for c in range(tx, columns, nx):
                    for i in range(ty, count, ny):
                        top = at + (first[i] - row0) * pitch + c
                        pool[sums + i * columns + c] = strided_sum(pool, top, last[i] - first[i], pitch)
            cuda.syncthreads()

            # 4. Sums along the columns of each output's window; they take the place of the source rows.
            if lanes == 1:
                if oty < ony:
                    for o in range(otx, outputs, onx):
                        for i in range(oty, count, ony):
                            kw = right[o] - left[o]
                            total = strided_sum(pool, sums + i * columns + left[o], kw, 1)
                            if not backward:
                                total /= number((last[i] - first[i]) * kw)
                            pool[out_at + i * out_pitch + o] = total
            else:
                for e0 in range(0, count * outputs, THREADS // lanes):
                    e = min(e0 + t // lanes, count * outputs - 1)
                    i, o = e // outputs, e % outputs
                    row = sums + i * columns
                    total = shared_sum(pool, row + left[o], row + right[o], scratch, lanes)
                    if not backward:
                        total /= number((last[i] - first[i]) * (right[o] - left[o]))
                    if t % lanes == 0:
                        pool[out_at + i * out_pitch + o] = total
            cuda.syncthreads()

            # 5. Outputs, shared to global memory.
            begin = line0 * dW + ow0
            if outputs == dW:
                copy_out(dst, begin, pool, out_at, count * dW, dst_shift, t, THREADS)
            else:
                for i in range(t // WARP, count, THREADS // WARP):
                    copy_out(dst, begin + i * dW, pool, out_at + i * out_pitch, outputs, dst_shift, t % WARP, WARP)

    return tiles


# --- contiguous tensors, tall or wide windows --------------------------------------------------------------------


@lru_cache(maxsize=None)
def strip_kernel(dtype, backward, width, room=ROOM):
    """Make the kernel for contiguous planes with windows of many rows or many columns: ``strips``.

    What it buys: sums down the rows stay in registers, with four wide loads in flight for every thread, so a window may
    be of any height.
    A block takes one line and as many outputs as its threads can read side by side, `width` columns a thread.
    Where that is fewer threads than it has, the others take every ``ny``-th row.
    A window of more than `room.part` elements is cut into parts of equal height (and equal width, if it is wider than a
    block); every part is a block's work, and ``finish`` adds the parts.

    `width` is a whole pack where each row starts at a multiple of 16 bytes, else 1; the order of the sums is the same.
    """
    pack = pack_of(dtype, width)
    load_pack, add, divide, zero, put = pack.load, pack.add, pack.divide, pack.zero, pack.put
    store, store_sum = pack_of(dtype, 1).store, pack_of("float64" if dtype == "float64" else "float32", 1).store
    THREADS, FULL = room.threads, full_width(dtype)
    REACH = strip_columns(dtype, room)
    shared_strip = shared_sums(dtype, THREADS * FULL)
    number, sum_type = TYPES[dtype].sum, sum_type_of(dtype)

    @device_function
    def load_row(src, row, sH, dH, sW, column):
        values = load_pack(src, row * sW + column)
        if backward:
            values = divide(values, window_length(row, sH, dH))
        return values

    @cuda.jit
    def strips(src, dst, lines, sH, dH, sW, dW, across, nx, lanes, part_rows, row_parts, column_parts):
        strip = shared_strip()
        scratch = cuda.shared.array(THREADS, sum_type)
        t = cuda.threadIdx.x
        tx, ty, ny = t % nx, t // nx, THREADS // nx
        pitch = nx * FULL
        parts = row_parts * column_parts
        across_tiles = (dW + across - 1) // across

        for unit in range(cuda.blockIdx.x, lines * parts * across_tiles, cuda.gridDim.x):
            # Which line, which part of its windows, which outputs; then which rows and columns of the source.
            line, part, tile = unit // across_tiles // parts, unit // across_tiles % parts, unit % across_tiles
            ow0 = tile * across
            outputs = min(across, dW - ow0)
            row0 = start_index(line, dH, sH) + part // column_parts * part_rows
            row1 = min(row0 + part_rows, end_index(line, dH, sH))
            iw0 = start_index(ow0, dW, sW) + part % column_parts * REACH
            iw1 = min(iw0 + REACH, end_index(ow0 + outputs - 1, dW, sW))
            base = iw0 - iw0 % width

            # Down the rows: four of them at once, summed in pairs, then added to the total.
            for x in range(tx * width, iw1 - base, nx * width):
                total = zero()
                row = row0 + ty
                while row + 3 * ny < row1:
                    a = load_row(src, row, sH, dH, sW, base + x)
                    b = load_row(src, row + ny, sH, dH, sW, base + x)
                    c = load_row(src, row + 2 * ny, sH, dH, sW, base + x)
                    d = load_row(src, row + 3 * ny, sH, dH, sW, base + x)
                    total = add(total, add(add(a, b), add(c, d)))
                    row += 4 * ny
                while row < row1:
                    total = add(total, load_row(src, row, sH, dH, sW, base + x))
                    row += ny
                put(strip, ty * pitch + x, total)
            cuda.syncthreads()
            for x in range(t, iw1 - base, THREADS):
                total = strided_sum(strip, x, ny, pitch)
                if backward:
                    total /= number(window_length(base + x, sW, dW))
                strip[x] = total
            cuda.syncthreads()

            # Along the columns of each window.
            for o0 in range(0, outputs, THREADS // lanes):
                o = min(o0 + t // lanes, outputs - 1)
                begin = max(start_index(ow0 + o, dW, sW), iw0)
                end = min(end_index(ow0 + o, dW, sW), iw1)
                total = shared_sum(strip, begin - base, end - base, scratch, lanes)
                if t % lanes == 0:
                    index = line * dW + ow0 + o
                    if parts > 1:
                        store_sum(dst, part * lines * dW + index, (total,))
                    else:
                        if not backward:
                            total /= number((row1 - row0) * (end - begin))
                        store(dst, index, (total,))

    return strips


def strip_columns(dtype, room):
    """Return how many columns of the source a block of ``strips`` reaches; the first may lie anywhere in its pack."""
    return room.threads * full_width(dtype) - full_width(dtype) + 1


# --- channels_last tensors ---------------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def pixel_kernel(dtype, backward, width, room=ROOM):
    """Make the kernel for channels_last tensors with small windows: ``pixels``.

    What it buys: neighbouring threads own neighbouring packs of channels, so every load and every store of a warp is one
    run of memory, and no thread waits for another.
    A thread keeps its column and its channels while it walks down a group of lines, so the columns of its windows are
    worked out once; the rows of the windows are worked out once for the whole block.
    Neighbouring windows share rows and columns, which the cache then holds.
    """
    pack = pack_of(dtype, width)
    load, store, add, divide, zero = pack.load, pack.store, pack.add, pack.divide, pack.zero
    THREADS, LINES, COLUMNS = room.threads, room.lines, room.columns

    @cuda.jit
    def pixels(src, dst, lines, sH, dH, sW, dW, C, group):
        first = cuda.shared.array(LINES, types.int64)
        last = cuda.shared.array(LINES, types.int64)
        heights = cuda.shared.array(LINES, types.int32)
        widths = cuda.shared.array(COLUMNS, types.int32)
        t = cuda.threadIdx.x
        packs = C // width
        tiles = (dW * packs + THREADS - 1) // THREADS
        groups = (lines + group - 1) // group

        for unit in range(cuda.blockIdx.x, groups * tiles, cuda.gridDim.x):
            line0, item0 = unit // tiles * group, unit % tiles * THREADS
            count = min(group, lines - line0)
            row0 = start_index(line0, dH, sH)
            iw0 = start_index(item0 // packs, dW, sW)
            cuda.syncthreads()  # the tables of the unit before are no longer read
            for i in range(t, count, THREADS):
                first[i] = start_index(line0 + i, dH, sH)
                last[i] = end_index(line0 + i, dH, sH)
            if backward:
                for r in range(t, end_index(line0 + count - 1, dH, sH) - row0, THREADS):
                    heights[r] = window_length(row0 + r, sH, dH)
                final = min(item0 + THREADS, dW * packs) - 1
                for c in range(t, end_index(final // packs, dW, sW) - iw0, THREADS):
                    widths[c] = window_length(iw0 + c, sW, dW)
            cuda.syncthreads()

            item = item0 + t
            if item < dW * packs:
                ow, channel = item // packs, item % packs * width
                left, right = start_index(ow, dW, sW), end_index(ow, dW, sW)
                for i in range(count):
                    total = zero()
                    for row in range(first[i], last[i]):
                        index = (row * sW + left) * C + channel
                        for iw in range(left, right):
                            values = load(src, index)
                            if backward:
                                values = divide(values, heights[row - row0] * widths[iw - iw0])
                            total = add(total, values)
                            index += C
                    if not backward:
                        total = divide(total, (last[i] - first[i]) * (right - left))
                    store(dst, ((line0 + i) * dW + ow) * C + channel, total)

    return pixels


@lru_cache(maxsize=None)
def bundle_kernel(dtype, backward, width, room=ROOM):
    """Make the kernel for channels_last tensors with large windows: ``bundles``.

    What it buys: a bundle of neighbouring channels is summed by the whole block, so that one image is enough to keep a
    device busy.
    ``nx`` threads stand side by side along the channels; the others take every ``ny``-th pixel of the window.
    A window of many pixels is cut into parts, as in ``strips``.
    """
    pack = pack_of(dtype, width)
    load, add, divide, zero, put = pack.load, pack.add, pack.divide, pack.zero, pack.put
    store, store_sum = pack_of(dtype, 1).store, pack_of("float64" if dtype == "float64" else "float32", 1).store
    THREADS, FULL = room.threads, full_width(dtype)
    shared_bundle = shared_sums(dtype, THREADS * FULL)
    number = TYPES[dtype].sum

    @device_function
    def load_pixel(src, row, column, sH, dH, sW, dW, C, channel):
        values = load(src, (row * sW + column) * C + channel)
        if backward:
            values = divide(values, window_length(row, sH, dH) * window_length(column, sW, dW))
        return values

    @cuda.jit
    def bundles(src, dst, lines, sH, dH, sW, dW, C, nx, part_pixels, parts):
        bundle = shared_bundle()
        t = cuda.threadIdx.x
        tx, ty, ny = t % nx, t // nx, THREADS // nx
        pitch = nx * FULL
        across_tiles = (C + pitch - 1) // pitch

        for unit in range(cuda.blockIdx.x, lines * dW * parts * across_tiles, cuda.gridDim.x):
            channel0 = unit % across_tiles * pitch
            channels = min(pitch, C - channel0)
            part, index = unit // across_tiles % parts, unit // across_tiles // parts
            line, ow = index // dW, index % dW
            row0, left = start_index(line, dH, sH), start_index(ow, dW, sW)
            kh, kw = window_length(line, dH, sH), window_length(ow, dW, sW)
            pixel0, pixel1 = part * part_pixels, min((part + 1) * part_pixels, kh * kw)

            for x in range(tx * width, channels, nx * width):
                total = zero()
                pixel = pixel0 + ty
                while pixel + 3 * ny < pixel1:
                    p, q, r = pixel + ny, pixel + 2 * ny, pixel + 3 * ny
                    a = load_pixel(src, row0 + pixel // kw, left + pixel % kw, sH, dH, sW, dW, C, channel0 + x)
                    b = load_pixel(src, row0 + p // kw, left + p % kw, sH, dH, sW, dW, C, channel0 + x)
                    c = load_pixel(src, row0 + q // kw, left + q % kw, sH, dH, sW, dW, C, channel0 + x)
                    d = load_pixel(src, row0 + r // kw, left + r % kw, sH, dH, sW, dW, C, channel0 + x)
                    total = add(total, add(add(a, b), add(c, d)))
                    pixel += 4 * ny
                while pixel < pixel1:
                    values = load_pixel(src, row0 + pixel // kw, left + pixel % kw, sH, dH, sW, dW, C, channel0 + x)
                    total = add(total, values)
                    pixel += ny
                put(bundle, ty * pitch + x, total)
            cuda.syncthreads()
            for x in range(t, channels, THREADS):
                total = strided_sum(bundle, x, ny, pitch)
                target = index * C + channel0 + x
                if parts > 1:
                    store_sum(dst, part * lines * dW * C + target, (total,))
                else:
                    if not backward:
                        total /= number(kh * kw)
                    store(dst, target, (total,))
            cuda.syncthreads()

    return bundles


# --- windows that several blocks shared --------------------------------------------------------------------------


@lru_cache(maxsize=None)
def finish_kernel(dtype, backward):
    """Make the kernel that adds the parts of every window, in order, and forward divides by the area: ``finish``.

    What it buys: one huge window keeps a whole device busy, and still has the same bits in every run.
    ``parts[k]`` holds part ``k`` of all outputs, in the outputs' own order, so reads and writes are coalesced.
    """
    load_sum, zero = pack_of("float64" if dtype == "float64" else "float32", 1).load, pack_of(dtype, 1).zero
    store = pack_of(dtype, 1).store
    number = TYPES[dtype].sum

    @cuda.jit
    def finish(partial, dst, count, parts, inner, sH, dH, sW, dW):
        step = cuda.blockDim.x * cuda.gridDim.x
        for index in range(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, count, step):
            a = b = zero()[0]
            for part in range(0, parts - 1, 2):
                a += load_sum(partial, part * count + index)[0]
                b += load_sum(partial, (part + 1) * count + index)[0]
            if parts % 2 == 1:
                a += load_sum(partial, (parts - 1) * count + index)[0]
            total = a + b
            if not backward:
                line, ow = index // inner // dW, index // inner % dW
                total /= number(window_length(line, dH, sH) * window_length(ow, dW, sW))
            store(dst, index, (total,))

    return finish


# --- launches ----------------------------------------------------------------------------------------------------


class Plan:
    """How one pooling of given sizes is launched: kernels, grids and integers, worked out once and used many times.

    Attributes
    ----------
    scratch : int
        Bytes of device memory for the parts of shared windows; 0 when no window is shared.
    steps : list of (str, int, tuple)
        For every launch in order: the kernel's name, the number of blocks, and the integers that it is given.
    """

    def __init__(self, threads, kernel, blocks, sizes):
        self.scratch = 0
        self._threads = threads
        self._kernels = []
        self.steps = []
        self._configured = {}
        self._append(kernel, blocks, sizes)

    def _append(self, kernel, blocks, sizes):
        self._kernels.append(kernel)
        self.steps.append((kernel.py_func.__name__, min(max(blocks, MIN_BLOCKS), MAX_BLOCKS), sizes))

    def share_windows(self, dtype, backward, parts, inner, lines, sH, dH, sW, dW):
        """Let the kernel leave `parts` sums for every output in scratch memory, and ``finish`` add them."""
        outputs = lines * dW * inner
        self.scratch = parts * outputs * TYPES[dtype].sum().itemsize
        sizes = (outputs, parts, inner, sH, dH, sW, dW)
        self._append(finish_kernel(dtype, backward), -(-outputs // self._threads), sizes)

    def run(self, src, dst, scratch=None, stream=0):
        """Launch the kernels on `stream`, one after the other; return at once.

        Parameters
        ----------
        src, dst : int
            Device addresses of the first elements.
            In Numba's simulator, NumPy arrays of one dimension; halves travel as int16 (float16) or uint16 (bfloat16).
        scratch : int, optional
            Device address of `scratch` bytes, a multiple of 16; needed only where `scratch` is not 0.
        stream : int
            Handle of the CUDA stream to launch on, on the current device; 0 is the default stream.
        """
        try:
            launches = self._configured[stream]
        except KeyError:
            launches = self._configured[stream] = self._configure(stream)
        if self.scratch:
            launches[0](src, scratch)
            launches[1](scratch, dst)
        else:
            launches[0](src, dst)

    def _configure(self, handle):
        stream = cuda.external_stream(handle) if handle else 0

        def launch(kernel, blocks, sizes):
            if SIMULATED:  # where a configured kernel is the kernel itself, and cannot be kept
                return lambda *addresses: kernel[blocks, self._threads, stream](*addresses, *sizes)
            configured = kernel[blocks, self._threads, stream]
            return lambda *addresses: configured(*addresses, *sizes)

        return [launch(kernel, *step[1:]) for kernel, step in zip(self._kernels, self.steps, strict=True)]


def forward(dtype, planes, H, W, oH, oW, inner=1, src_shift=0, dst_shift=0, device=0, processors=132, room=ROOM):
    """Plan the average of every window: input of ``(H, W)`` to output of ``(oH, oW)``.

    Parameters
    ----------
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Type of input and output.
    planes : int
        How many planes lie one after the other: ``N * C`` for contiguous tensors, ``N`` for channels_last.
    H, W, oH, oW : int
        Sizes of a plane, in elements (channels_last: pixels), all at least 1.
    inner : int
        Elements of a pixel: 1 for contiguous tensors, ``C`` for channels_last.
    src_shift, dst_shift : int
        Where the first element lies in its 16 bytes: ``address % 16 // itemsize``.
    device, processors : int
        The device's index, and how many multiprocessors it has; they change how work is shared out, never a bit of the
        result.

    Returns
    -------
    Plan
        Its `run` launches the kernels; its `scratch` says how many bytes they need beside input and output.
        The same arguments give the same object.
    """
    return _plan(dtype, False, planes, H, W, oH, oW, inner, src_shift, dst_shift, device, processors, room)


def backward(dtype, planes, H, W, oH, oW, inner=1, src_shift=0, dst_shift=0, device=0, processors=132, room=ROOM):
    """Plan the gradient of :func:`forward`: grad_output of ``(oH, oW)`` to grad_input of ``(H, W)``.

    Parameters and result are those of :func:`forward`; `src_shift` is that of grad_output, `dst_shift` of grad_input.
    """
    return _plan(dtype, True, planes, oH, oW, H, W, inner, src_shift, dst_shift, device, processors, room)


@lru_cache(maxsize=4096)
def _plan(dtype, backward, planes, sH, sW, dH, dW, inner, src_shift, dst_shift, device, processors, room):
    if sW == dW == 1 and inner == 1:
        # A column is a row that stands upright, and rows are what the kernels read fast.
        sH, sW, dH, dW = 1, sH, 1, dH
    sizes = planes * dH, sH, dH, sW, dW
    if inner > 1:
        aligned = inner % full_width(dtype) == src_shift == dst_shift == 0
        return _plan_pixels(dtype, backward, *sizes, inner, aligned, processors, room) or _plan_bundles(
            dtype, backward, *sizes, inner, aligned, room
        )
    aligned = sW % full_width(dtype) == src_shift == 0
    return _plan_tiles(dtype, backward, *sizes, src_shift, dst_shift, processors, room) or _plan_strips(
        dtype, backward, *sizes, aligned, room
    )


def longest_window(size, other_size, count=1):
    """Return the most elements that the windows of `count` neighbouring indices hold together.

    The remainder of ``i * other_size / size`` is a multiple of the sizes' common divisor, so at most `size` less that.
    """
    return (size - gcd(size, other_size) + count * other_size + size - 1) // size


def lanes_for(kw, room):
    """Return how many threads share the sum along a window's columns: 1 for a short one, then one for four columns."""
    return 1 if kw < 8 else min(room.warp, power_of_two(kw // 4))


def power_of_two(number):
    """Return the largest power of two that is at most `number`."""
    return 1 << (number.bit_length() - 1)


def _plan_tiles(dtype, backward, lines, sH, dH, sW, dW, src_shift, dst_shift, processors, room):
    """Return the plan of ``tiles``, or None where windows are too large for a block's shared memory."""
    slack = full_width(dtype) - 1
    kh = longest_window(dH, sH)

    def fits(group, across):
        columns, rows = longest_window(dW, sW, across), longest_window(dH, sH, group)
        if across > room.columns or (backward and (columns > room.columns or rows > room.lines)):
            return False
        whole = across == dW
        pitch, out_pitch = (sW, dW) if whole else (columns + slack, across + slack)
        kept = slack + max(rows * pitch, group * out_pitch)
        return kept + group * columns <= pool_size(dtype, room)

    # Whole rows if four lines fit; else, if windows are low, tiles that are as broad as four lines, or one, allow.
    choices = [(4, dW)]
    if kh <= 8:
        breadths = [room.columns >> k for k in range(6) if 0 < room.columns >> k < dW]
        choices += [(group, across) for group in (4, 1) for across in breadths] + [(1, dW)]
    across = next((across for group, across in choices if fits(group, across)), None)
    if across is None:
        return None
    across_tiles = -(-dW // across)
    # As many lines as shared memory holds, but not so many that multiprocessors stay idle.
    enough = max(1, lines * across_tiles // (4 * processors))
    group = max(group for group in range(1, min(enough, room.lines) + 1) if fits(group, across))
    groups = -(-lines // group)
    # A block that serves four groups works out its columns once; where groups are few, all run side by side.
    rounds = 4 if groups * across_tiles >= 64 * processors else 1
    blocks = max(-(-groups // rounds), -(-MIN_BLOCKS // across_tiles)) * across_tiles
    blocks = min(blocks, MAX_BLOCKS // across_tiles * across_tiles)
    lanes = lanes_for(longest_window(dW, sW), room)
    sizes = lines, sH, dH, sW, dW, group, across, lanes, src_shift, dst_shift
    return Plan(room.threads, tile_kernel(dtype, backward, room), blocks, sizes)


def _plan_strips(dtype, backward, lines, sH, dH, sW, dW, aligned, room):
    """Return the plan of ``strips``, which takes windows of any size."""
    full, reach = full_width(dtype), strip_columns(dtype, room)
    kh, kw = longest_window(dH, sH), longest_window(dW, sW)
    # As many outputs side by side as the block reaches, shared out evenly over the tiles.
    across = min(dW, 4 * room.threads)
    while across > 1 and longest_window(dW, sW, across) > reach:
        across = min(across - 1, max(1, reach * dW // sW))
    across = -(-dW // -(-dW // across))
    column_parts = -(-kw // reach) if across == 1 else 1
    columns = min(longest_window(dW, sW, across), reach)
    row_parts = -(-kh * columns // room.part)
    part_rows = -(-kh // row_parts)
    row_parts = -(-kh // part_rows)
    # The first column may lie anywhere in its pack, unless it is the first of the row.
    packs = -(-columns // full) if across == dW and column_parts == 1 else -(-(columns + full - 1) // full)
    nx = 1 << (packs - 1).bit_length()
    sizes = lines, sH, dH, sW, dW, across, nx, lanes_for(kw, room), part_rows, row_parts, column_parts
    blocks = lines * row_parts * column_parts * -(-dW // across)
    plan = Plan(room.threads, strip_kernel(dtype, backward, full if aligned else 1, room), blocks, sizes)
    if row_parts * column_parts > 1:
        plan.share_windows(dtype, backward, row_parts * column_parts, 1, lines, sH, dH, sW, dW)
    return plan


def _plan_pixels(dtype, backward, lines, sH, dH, sW, dW, C, aligned, processors, room):
    """Return the plan of ``pixels``, or None where a window is too large for one thread."""
    kh, kw = longest_window(dH, sH), longest_window(dW, sW)
    # Outputs of one block, counted as if packs were full, so that the choice does not hang on alignment.
    outputs = min(dW, room.threads // max(1, C // full_width(dtype)) + 2)
    if kh * kw > 16 or (backward and longest_window(dW, sW, outputs) > room.columns):
        return None
    width = full_width(dtype) if aligned else 1
    tiles = -(-dW * (C // width) // room.threads)
    group = min(32, room.lines, max(1, lines * tiles // (16 * processors)))
    while backward and longest_window(dH, sH, group) > room.lines:
        group -= 1
    sizes = lines, sH, dH, sW, dW, C, group
    return Plan(room.threads, pixel_kernel(dtype, backward, width, room), -(-lines // group) * tiles, sizes)


def _plan_bundles(dtype, backward, lines, sH, dH, sW, dW, C, aligned, room):
    """Return the plan of ``bundles``, which takes windows of any size."""
    full = full_width(dtype)
    area = longest_window(dH, sH) * longest_window(dW, sW)
    nx = min(room.warp, 1 << (-(-C // full) - 1).bit_length())
    parts = -(-area * nx * full // room.part)
    part_pixels = -(-area // parts)
    parts = -(-area // part_pixels)
    blocks = lines * dW * parts * -(-C // (nx * full))
    sizes = lines, sH, dH, sW, dW, C, nx, part_pixels, parts
    plan = Plan(room.threads, bundle_kernel(dtype, backward, full if aligned else 1, room), blocks, sizes)
    if parts > 1:
        plan.share_windows(dtype, backward, parts, C, lines, sH, dH, sW, dW)
    return plan
