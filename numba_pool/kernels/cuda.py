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
So ``planes`` planes of ``sH`` rows are one tall plane of ``planes * sH`` rows, and its windows obey the same formula:
line ``i`` of the tall destination starts at row ``i * sH // dH`` of the tall source.

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
This room knows no torch: kernels take addresses and integers, and :func:`forward` and :func:`backward` plan their
launches.
"""

from collections import namedtuple
from functools import cache, lru_cache
from math import gcd
from typing import Any

import numpy as np
from numba import cuda, types

from .. import windows
from .cuda_memory import PACK_BYTES, SIMULATED, TYPES, device_function, full_width, pack_of, quotient

Room = namedtuple("Room", "threads pool lines columns part warp")
Room.__doc__ = """What a block has: its threads, sums in shared memory, lines and columns in its tables, the elements
of a part of a shared window, and the threads that copy a row together."""

# 36 KB of sums and 10 KB of tables: four blocks of 256 threads share a multiprocessor of 228 KB (H100, H200), three one
# of 164 KB (A100).
ROOM = Room(threads=256, pool=36 * 1024 // 4, lines=256, columns=512, part=32768, warp=32)

# Numba warns of a grid of fewer than 128 blocks at every launch. Blocks without work leave at once, so small problems
# are launched with 128; the simulator, which runs blocks one by one, does without.
MIN_BLOCKS = 1 if SIMULATED else 128

# Numba adds and multiplies integers in 64 bits; what counts inside a block is kept in 32, for fewer registers.
int32: Any = np.int32

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


def compile_kernel(registers=64):
    """Compile a kernel for at most so many registers a thread.

    A multiprocessor has 65536: with 64, it holds four blocks of 256 threads, and while one waits for memory three work.
    """
    return cuda.jit if SIMULATED else cuda.jit(max_registers=registers)


# --- what kernels share ------------------------------------------------------------------------------------------


@device_function
def window_length(i, size, other_size):
    """Return how many elements the window of `i` holds."""
    return end_index(i, size, other_size) - start_index(i, size, other_size)


@device_function
def strided_sum(values, i, count, stride):
    """Return ``values[i] + values[i + stride] + …``, `count` terms in two partial sums.

    Two short chains round less than a long one, and their additions need not wait for each other.
    """
    a = b = np.float32(0)
    for _ in range(int32(count // 2)):
        a += values[i]
        b += values[i + stride]
        i = int32(i + 2 * stride)
    if count % 2 == 1:
        a += values[i]
    return a + b


@device_function
def shared_sum(values, begin, end, scratch, lanes):
    """Return ``values[begin] + … + values[end - 1]`` to the first of `lanes` neighboring threads, which share it.

    Neighboring threads read neighboring values, so no two of them wait for the same bank of shared memory.
    Every thread of the block has to call it: it waits for all of them.
    """
    t = int32(cuda.threadIdx.x)
    lane = int32(t - quotient(t, lanes) * lanes)
    scratch[t] = strided_sum(values, int32(begin + lane), quotient(end - begin - lane + lanes - 1, lanes), lanes)
    cuda.syncthreads()
    total = strided_sum(scratch, int32(t - lane), lanes, int32(1))
    cuda.syncthreads()
    return total


@device_function
def arrange(count, threads):
    """Return how many of `threads` stand side by side along `count` columns, so that few are left over.

    All of them, or an equal share of the columns when there are more than half as many columns as threads.
    """
    rounds = quotient(2 * count + threads - 1, threads)
    return quotient(count + rounds - 1, rounds)


# --- contiguous tensors, small windows ---------------------------------------------------------------------------


@cache
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
        """Bring ``src[begin:begin + count]`` to ``pool[at:]``: packs where 16 bytes are aligned, the ends singly.

        A team is at least 16 threads, more than the ends can hold.
        """
        head = int32(min((-(begin + shift)) % width, count))
        packs = int32((count - head) // width)
        for p in range(t, packs, team):
            put_pack(pool, at + head + p * width, load_pack(src, begin + head + p * width))
        # At most width - 1 elements before the packs, and as many after them.
        ends = int32(count - packs * width)
        if t < ends:
            e = int32(t if t < head else t + packs * width)
            put(pool, at + e, load(src, begin + e))

    @device_function
    def copy_out(dst, begin, pool, at, count, shift, t, team):
        """Bring ``pool[at:at + count]`` to ``dst[begin:]``, in the same way."""
        head = int32(min((-(begin + shift)) % width, count))
        packs = int32((count - head) // width)
        for p in range(t, packs, team):
            store_pack(dst, begin + head + p * width, get_pack(pool, at + head + p * width))
        ends = int32(count - packs * width)
        if t < ends:
            e = int32(t if t < head else t + packs * width)
            store(dst, begin + e, get(pool, at + e))

    @compile_kernel(registers=80 if dtype == "bfloat16" else 64)
    def tiles(src, dst, lines, sH, dH, sW, dW, group, across, across_tiles, lanes, src_shift, dst_shift):
        pool = shared_pool()
        scratch = cuda.shared.array(THREADS, sum_type)
        top = cuda.shared.array(LINES, types.int32)
        bottom = cuda.shared.array(LINES, types.int32)
        heights = cuda.shared.array(LINES, types.int32)
        left = cuda.shared.array(COLUMNS, types.int32)
        right = cuda.shared.array(COLUMNS, types.int32)
        widths = cuda.shared.array(COLUMNS, types.int32)
        t = int32(cuda.threadIdx.x)

        line_group = quotient(cuda.blockIdx.x, across_tiles)
        line0 = line_group * group
        if line0 >= lines:
            return

        # The columns of this block: a tile of outputs, and the sources of their windows.
        ow0 = (cuda.blockIdx.x - line_group * across_tiles) * across
        outputs = int32(min(across, dW - ow0))
        iw0 = start_index(ow0, dW, sW)
        columns = int32(end_index(ow0 + outputs - 1, dW, sW) - iw0)
        for o in range(t, outputs, THREADS):
            left[o] = start_index(ow0 + o, dW, sW) - iw0
            right[o] = end_index(ow0 + o, dW, sW) - iw0
        if backward:
            for c in range(t, columns, THREADS):
                widths[c] = window_length(iw0 + c, sW, dW)
        # Rows in shared memory keep the alignment that they have in global memory: their pitch may be a little longer.
        pitch = int32(columns + (sW - columns) % width)
        out_pitch = int32(outputs + (dW - outputs) % width)

        # The lines of this block, and the source rows that they need.
        count = int32(min(group, lines - line0))
        row0 = start_index(line0, dH, sH)
        rows = int32(end_index(line0 + count - 1, dH, sH) - row0)
        for i in range(t, count, THREADS):
            top[i] = start_index(line0 + i, dH, sH) - row0
            bottom[i] = end_index(line0 + i, dH, sH) - row0
        if backward:
            for r in range(t, rows, THREADS):
                heights[r] = window_length(row0 + r, sH, dH)

        # 1. Source rows, global to shared memory: one run of whole rows, or a run for each row and a warp for each run.
        begin = row0 * sW + iw0
        at = int32((begin + src_shift) % width)
        team, teams, runs, length = THREADS, 1, int32(1), int32(rows * columns)
        if columns < sW:
            team, teams, runs, length = WARP, THREADS // WARP, rows, columns
        mine = quotient(t, team)
        for r in range(mine, runs, teams):
            copy_in(src, begin + r * sW, pool, int32(at + r * pitch), length, src_shift, int32(t - mine * team), team)
        cuda.syncthreads()

        # Threads stand in rows of nx along the columns: a thread keeps its column and walks down the lines.
        nx = arrange(columns, THREADS)
        ty, ny = quotient(t, nx), quotient(THREADS, nx)
        tx = int32(t - ty * nx)

        # 2. Every element of a gradient is shared out evenly over its window.
        if backward:
            if ty < ny:
                for c in range(tx, columns, nx):
                    for r in range(ty, rows, ny):
                        pool[at + r * pitch + c] /= number(heights[r] * widths[c])
            cuda.syncthreads()

        # 3. Sums down the rows of each line's window.
        begin = line0 * dW + ow0
        out_at = int32((begin + dst_shift) % width)
        sums = int32(max(at + rows * pitch, out_at + count * out_pitch))
        if ty < ny:
            for c in range(tx, columns, nx):
                for i in range(ty, count, ny):
                    kh = bottom[i] - top[i]
                    pool[sums + i * columns + c] = strided_sum(pool, int32(at + top[i] * pitch + c), kh, pitch)
        cuda.syncthreads()

        # 4. Sums along the columns of each output's window; they take the place of the source rows.
        if lanes == 1:
            nx = arrange(outputs, THREADS)
            ty, ny = quotient(t, nx), quotient(THREADS, nx)
            tx = int32(t - ty * nx)
            if ty < ny:
                for o in range(tx, outputs, nx):
                    first = left[o]
                    kw = right[o] - first
                    for i in range(ty, count, ny):
                        total = strided_sum(pool, int32(sums + i * columns + first), kw, int32(1))
                        if not backward:
                            total /= number((bottom[i] - top[i]) * kw)
                        pool[out_at + i * out_pitch + o] = total
        else:
            for e0 in range(int32(0), int32(count * outputs), quotient(THREADS, lanes)):
                e = int32(min(e0 + quotient(t, lanes), count * outputs - 1))
                i = quotient(e, outputs)
                o = int32(e - i * outputs)
                first = int32(sums + i * columns)
                total = shared_sum(pool, int32(first + left[o]), int32(first + right[o]), scratch, lanes)
                if not backward:
                    total /= number((bottom[i] - top[i]) * (right[o] - left[o]))
                if t == quotient(t, lanes) * lanes:
                    pool[out_at + i * out_pitch + o] = total
        cuda.syncthreads()

        # 5. Outputs, shared to global memory.
        team, teams, runs, length = THREADS, 1, int32(1), int32(count * outputs)
        if outputs < dW:
            team, teams, runs, length = WARP, THREADS // WARP, count, outputs
        mine = quotient(t, team)
        for i in range(mine, runs, teams):
            begun = begin + i * dW
            copy_out(dst, begun, pool, int32(out_at + i * out_pitch), length, dst_shift, int32(t - mine * team), team)

    return tiles


# --- contiguous tensors, tall or wide windows --------------------------------------------------------------------


@cache
def strip_kernel(dtype, backward, width, room=ROOM):
    """Make the kernel for contiguous planes with windows of many rows or many columns: ``strips``.

    What it buys: sums down the rows stay in registers, so a window may be of any height, and loads need not wait for
    the sums before them.
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

    @compile_kernel(registers=96 if backward else 64)
    def strips(src, dst, lines, sH, dH, sW, dW, across, nx, lanes, part_rows, row_parts, column_parts):
        strip = shared_strip()
        scratch = cuda.shared.array(THREADS, sum_type)
        t = int32(cuda.threadIdx.x)
        ty, ny = quotient(t, nx), quotient(THREADS, nx)
        tx = int32(t - ty * nx)
        pitch = int32(nx * FULL)

        # Which line, which part of its windows, which outputs; then which rows and columns of the source.
        across_tiles = (dW + across - 1) // across
        parts = row_parts * column_parts
        line = cuda.blockIdx.x // across_tiles // parts
        if line >= lines:
            return
        part = cuda.blockIdx.x // across_tiles % parts
        ow0 = cuda.blockIdx.x % across_tiles * across
        outputs = int32(min(across, dW - ow0))
        row0 = start_index(line, dH, sH) + part // column_parts * part_rows
        rows = int32(min(part_rows, end_index(line, dH, sH) - row0))
        iw0 = start_index(ow0, dW, sW) + part % column_parts * REACH
        iw1 = min(iw0 + REACH, end_index(ow0 + outputs - 1, dW, sW))
        base = iw0 - iw0 % width
        columns = int32(iw1 - base)

        # Down the rows.
        if ty < ny:
            for x in range(int32(tx * width), columns, int32(nx * width)):
                total = zero()
                index = (row0 + ty) * sW + base + x
                for r in range(ty, rows, ny):
                    values = load_pack(src, index)
                    if backward:
                        values = divide(values, window_length(row0 + r, sH, dH))
                    total = add(total, values)
                    index += ny * sW
                put(strip, int32(ty * pitch + x), total)
        cuda.syncthreads()
        for x in range(t, columns, THREADS):
            total = strided_sum(strip, x, ny, pitch)
            if backward:
                total /= number(window_length(base + x, sW, dW))
            strip[x] = total
        cuda.syncthreads()

        # Along the columns of each window.
        for o0 in range(int32(0), outputs, quotient(THREADS, lanes)):
            o = int32(o0 + quotient(t, lanes))
            last = min(o, outputs - 1)
            begin = int32(max(start_index(ow0 + last, dW, sW), iw0) - base)
            end = int32(min(end_index(ow0 + last, dW, sW), iw1) - base)
            total = shared_sum(strip, begin, end, scratch, lanes)
            if t == quotient(t, lanes) * lanes and o < outputs:
                index = line * dW + ow0 + o
                if parts > 1:
                    store_sum(dst, part * lines * dW + index, (total,))
                else:
                    if not backward:
                        total /= number(rows * (end - begin))
                    store(dst, index, (total,))

    return strips


def strip_columns(dtype, room):
    """Return how many columns of the source a block of ``strips`` reaches; the first may lie anywhere in its pack."""
    return room.threads * full_width(dtype) - full_width(dtype) + 1


# --- channels_last tensors ---------------------------------------------------------------------------------------


@cache
def pixel_kernel(dtype, backward, width, room=ROOM):
    """Make the kernel for channels_last tensors with small windows: ``pixels``.

    What it buys: neighboring threads own neighboring packs of channels, so a warp loads and stores runs of memory, and
    no thread waits for another.
    A thread keeps its column and its channels while it walks down a group of lines, so the columns of its windows are
    worked out once; the rows of the windows are worked out once for the whole block.
    Neighboring windows share rows and columns, which the cache then holds.
    """
    pack = pack_of(dtype, width)
    load, store, add, divide, zero = pack.load, pack.store, pack.add, pack.divide, pack.zero
    THREADS, LINES, COLUMNS = room.threads, room.lines, room.columns

    @compile_kernel(registers=64 if not backward else 96 if dtype == "float64" else 80)
    def pixels(src, dst, lines, sH, dH, sW, dW, C, group):
        top = cuda.shared.array(LINES, types.int32)
        bottom = cuda.shared.array(LINES, types.int32)
        heights = cuda.shared.array(LINES, types.int32)
        widths = cuda.shared.array(COLUMNS, types.int32)
        t = int32(cuda.threadIdx.x)

        # The lines of this block, and its outputs in each of them: consecutive packs of channels.
        packs = C // width
        tiles = (dW * packs + THREADS - 1) // THREADS
        line0 = cuda.blockIdx.x // tiles * group
        if line0 >= lines:
            return
        item0 = cuda.blockIdx.x % tiles * THREADS
        count = int32(min(group, lines - line0))
        row0 = start_index(line0, dH, sH)
        iw0 = start_index(item0 // packs, dW, sW)
        for i in range(t, count, THREADS):
            top[i] = start_index(line0 + i, dH, sH) - row0
            bottom[i] = end_index(line0 + i, dH, sH) - row0
        if backward:
            for r in range(t, int32(end_index(line0 + count - 1, dH, sH) - row0), THREADS):
                heights[r] = window_length(row0 + r, sH, dH)
            final = min(item0 + THREADS, dW * packs) - 1
            for c in range(t, int32(end_index(final // packs, dW, sW) - iw0), THREADS):
                widths[c] = window_length(iw0 + c, sW, dW)
        cuda.syncthreads()

        item = item0 + t
        if item < dW * packs:
            ow, channel = item // packs, item % packs * width
            left = start_index(ow, dW, sW)
            kw = int32(end_index(ow, dW, sW) - left)
            first = int32(left - iw0)
            for i in range(count):
                total = zero()
                for r in range(top[i], bottom[i]):
                    index = ((row0 + r) * sW + left) * C + channel
                    for c in range(kw):
                        values = load(src, index)
                        if backward:
                            values = divide(values, heights[r] * widths[first + c])
                        total = add(total, values)
                        index += C
                if not backward:
                    total = divide(total, (bottom[i] - top[i]) * kw)
                store(dst, ((line0 + i) * dW + ow) * C + channel, total)

    return pixels


@cache
def bundle_kernel(dtype, backward, width, room=ROOM):
    """Make the kernel for channels_last tensors with large windows: ``bundles``.

    What it buys: a bundle of neighboring channels is summed by the whole block, so that one image is enough to keep a
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

    @compile_kernel(registers=96 if backward else 80)
    def bundles(src, dst, lines, sH, dH, sW, dW, C, nx, part_pixels, parts):
        bundle = shared_bundle()
        t = int32(cuda.threadIdx.x)
        ty, ny = quotient(t, nx), quotient(THREADS, nx)
        tx = int32(t - ty * nx)
        pitch = int32(nx * FULL)

        # Which output, which part of its window, which channels.
        across_tiles = (C + pitch - 1) // pitch
        output = cuda.blockIdx.x // across_tiles // parts
        if output >= lines * dW:
            return
        part = cuda.blockIdx.x // across_tiles % parts
        channel0 = cuda.blockIdx.x % across_tiles * pitch
        channels = int32(min(pitch, C - channel0))
        line, ow = output // dW, output % dW
        row0, left = start_index(line, dH, sH), start_index(ow, dW, sW)
        kh, kw = window_length(line, dH, sH), int32(window_length(ow, dW, sW))
        pixel0 = part * part_pixels
        pixels = int32(min(part_pixels, kh * kw - pixel0))
        pixel0 += ty

        # Every ny-th pixel of the part: a step down and to the right, and at the end of a row on to the next.
        down, right = int32(ny // kw), int32(ny % kw)
        step, turn = (down * sW + right) * C, (sW - kw) * C
        if ty < ny:
            for x in range(int32(tx * width), channels, int32(nx * width)):
                total = zero()
                row, column = row0 + pixel0 // kw, int32(pixel0 % kw)
                index = (row * sW + left + column) * C + channel0 + x
                for _ in range(ty, pixels, ny):
                    values = load(src, index)
                    if backward:
                        values = divide(values, window_length(row, sH, dH) * window_length(left + column, sW, dW))
                    total = add(total, values)
                    index += step
                    row += down
                    column = int32(column + right)
                    if column >= kw:
                        index += turn
                        row += 1
                        column = int32(column - kw)
                put(bundle, int32(ty * pitch + x), total)
        cuda.syncthreads()
        for x in range(t, channels, THREADS):
            total = strided_sum(bundle, x, ny, pitch)
            index = output * C + channel0 + x
            if parts > 1:
                store_sum(dst, part * lines * dW * C + index, (total,))
            else:
                if not backward:
                    total /= number(kh * kw)
                store(dst, index, (total,))

    return bundles


# --- windows that several blocks shared --------------------------------------------------------------------------


@cache
def finish_kernel(dtype, backward, room=ROOM):
    """Make the kernel that adds the parts of every window, in order, and forward divides by the area: ``finish``.

    What it buys: one huge window keeps a whole device busy, and still has the same bits in every run.
    `lanes` neighboring threads share the parts of an output.
    ``partial[part * count + index]`` is part `part` of output `index`.
    """
    load_sum = pack_of("float64" if dtype == "float64" else "float32", 1).load
    store, zero = pack_of(dtype, 1).store, pack_of(dtype, 1).zero
    THREADS, number, sum_type = room.threads, TYPES[dtype].sum, sum_type_of(dtype)

    @compile_kernel()
    def finish(partial, dst, count, parts, lanes, inner, sH, dH, sW, dW):
        scratch = cuda.shared.array(THREADS, sum_type)
        t = int32(cuda.threadIdx.x)
        lane = int32(t % lanes)
        index = cuda.blockIdx.x * (THREADS // lanes) + t // lanes
        a = b = zero()[0]
        if index < count:
            for part in range(lane, parts, 2 * lanes):
                a += load_sum(partial, part * count + index)[0]
                if part + lanes < parts:
                    b += load_sum(partial, (part + lanes) * count + index)[0]
        scratch[t] = a + b
        cuda.syncthreads()
        if lane == 0 and index < count:
            total = strided_sum(scratch, t, lanes, int32(1))
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

    def __init__(self, room, kernel, blocks, sizes):
        self.scratch = 0
        self._room = room
        self._kernels = []
        self.steps = []
        self._configured = {}
        self._append(kernel, blocks, sizes)

    def _append(self, kernel, blocks, sizes):
        self._kernels.append(kernel)
        self.steps.append((kernel.py_func.__name__, max(blocks, MIN_BLOCKS), sizes))

    def share_windows(self, dtype, backward, parts, inner, lines, sH, dH, sW, dW):
        """Let the kernel leave `parts` sums for every output in scratch memory, and ``finish`` add them."""
        outputs = lines * dW * inner
        self.scratch = parts * outputs * TYPES[dtype].sum().itemsize
        lanes = power_of_two(min(self._room.threads, -(-parts // 4)))
        sizes = (outputs, parts, lanes, inner, sH, dH, sW, dW)
        self._append(finish_kernel(dtype, backward, self._room), -(-outputs * lanes // self._room.threads), sizes)

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
                return lambda *addresses: kernel[blocks, self._room.threads, stream](*addresses, *sizes)
            configured = kernel[blocks, self._room.threads, stream]
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
    if sW == 1 and dH % sH == 0 and inner == 1:
        # Every source element is spread over rows of its own, which lie one after the other: one row, to the kernels.
        planes, sH, dH, dW = planes * sH, 1, 1, dH // sH * dW
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
    """Return the most elements that the windows of `count` neighboring indices hold together.

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
    blocks = -(-lines // group) * across_tiles
    lanes = lanes_for(longest_window(dW, sW), room)
    sizes = lines, sH, dH, sW, dW, group, across, across_tiles, lanes, src_shift, dst_shift
    return Plan(room, tile_kernel(dtype, backward, room), blocks, sizes)


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
    sizes = lines, sH, dH, sW, dW, across, packs, lanes_for(kw, room), part_rows, row_parts, column_parts
    blocks = lines * row_parts * column_parts * -(-dW // across)
    plan = Plan(room, strip_kernel(dtype, backward, full if aligned else 1, room), blocks, sizes)
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
    return Plan(room, pixel_kernel(dtype, backward, width, room), -(-lines // group) * tiles, sizes)


def _plan_bundles(dtype, backward, lines, sH, dH, sW, dW, C, aligned, room):
    """Return the plan of ``bundles``, which takes windows of any size."""
    full = full_width(dtype)
    area = longest_window(dH, sH) * longest_window(dW, sW)
    packs = -(-C // full)
    nx = -(-packs // -(-packs // room.warp))
    parts = -(-area * nx * full // room.part)
    part_pixels = -(-area // parts)
    parts = -(-area // part_pixels)
    blocks = lines * dW * parts * -(-C // (nx * full))
    sizes = lines, sH, dH, sW, dW, C, nx, part_pixels, parts
    plan = Plan(room, bundle_kernel(dtype, backward, full if aligned else 1, room), blocks, sizes)
    if parts > 1:
        plan.share_windows(dtype, backward, parts, C, lines, sH, dH, sW, dW)
    return plan
