"""``tiles``: contiguous planes with small windows.

Chosen where four lines of windows fit in a block's shared memory with all that they need, or one line of low windows.

What it buys: every byte crosses the bus once, 16 at a time, whatever the width of a row.
A group of consecutive lines needs consecutive rows, and consecutive rows are one run of memory, even across the end of
a plane.
So a block copies that run as it lies, and all that is irregular (rows of 7 elements, windows that overlap) happens in
shared memory.
Planes that are too wide are cut into tiles of columns; then every row of a tile is a run.
"""

from functools import cache

from numba import cuda, types

from .device import (
    end_index,
    fill_lengths,
    fill_windows,
    int32,
    lane_sum,
    quotient,
    start_index,
    strided_sum,
    threads_across,
)
from .jit import compile_kernel, device_function
from .limits import LIMITS, full_width, shared_size
from .packs import ALIGNMENT, pack_of, sum_type_of


@cache
def tile_kernel(dtype, backward, limits=LIMITS):
    """Make the kernel ``tiles`` for a type and a direction.

    A block goes through five steps, with a barrier after each:

    1. copy the rows of a group of lines to shared memory;
    2. backward only: divide each element by the area of its window;
    3. for every line and column, sum the rows of the line's window;
    4. for every output, sum the columns of its window; forward only: divide by the area;
    5. copy the outputs, which are consecutive too, to global memory.
    """
    copy_in, copy_out = make_copy(dtype, True, limits), make_copy(dtype, False, limits)
    divide_by_areas, sum_rows, sum_columns = make_steps(dtype, backward, limits)
    sum_type, SIZE, WIDTH = sum_type_of(dtype), shared_size(dtype, limits), full_width(dtype)
    THREADS, LINES, COLUMNS = limits.threads, limits.lines, limits.columns

    @compile_kernel(registers=80 if dtype == "bfloat16" else 64)
    def tiles(src, dst, lines, sH, dH, sW, dW, group, across, across_tiles, lanes, src_shift, dst_shift):
        shared = cuda.shared.array(SIZE, sum_type, alignment=ALIGNMENT)
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
        fill_windows(left, right, ow0, outputs, iw0, dW, sW, t, THREADS)
        if backward:
            fill_lengths(widths, iw0, columns, sW, dW, t, THREADS)
        # Rows in shared memory keep the alignment that they have in global memory: their pitch may be a little longer.
        pitch = int32(columns + (sW - columns) % WIDTH)
        out_pitch = int32(outputs + (dW - outputs) % WIDTH)

        # The lines of this block, and the source rows that they need.
        count = int32(min(group, lines - line0))
        row0 = start_index(line0, dH, sH)
        rows = int32(end_index(line0 + count - 1, dH, sH) - row0)
        fill_windows(top, bottom, line0, count, row0, dH, sH, t, THREADS)
        if backward:
            fill_lengths(heights, row0, rows, sH, dH, t, THREADS)

        src0, dst0 = row0 * sW + iw0, line0 * dW + ow0
        at, out_at = int32((src0 + src_shift) % WIDTH), int32((dst0 + dst_shift) % WIDTH)
        sums = int32(max(at + rows * pitch, out_at + count * out_pitch))

        copy_in(src, src0, sW, shared, at, pitch, rows, columns, src_shift, t)
        cuda.syncthreads()
        if backward:
            divide_by_areas(shared, at, pitch, heights, widths, rows, columns, t)
            cuda.syncthreads()
        sum_rows(shared, at, pitch, sums, top, bottom, count, columns, t)
        cuda.syncthreads()
        # The outputs take the place of the source rows.
        sum_columns(
            shared, sums, columns, out_at, out_pitch, top, bottom, left, right, count, outputs, lanes, scratch, t
        )
        cuda.syncthreads()
        copy_out(dst, dst0, dW, shared, out_at, out_pitch, count, outputs, dst_shift, t)

    return tiles


def make_copy(dtype, inward, limits):
    """Make the function that copies a tile from global to shared memory, or back."""
    wide, one = pack_of(dtype, full_width(dtype)), pack_of(dtype, 1)
    load_pack, store_pack, get_pack, put_pack, WIDTH = wide.load, wide.store, wide.get, wide.put, wide.width
    load, store, get, put = one.load, one.store, one.get, one.put
    THREADS, WARP = limits.threads, limits.warp

    @device_function
    def copy_run(memory, begin, shared, at, count, shift, t, threads):
        """Copy `count` elements: packs where 16 bytes are aligned, the ends singly.

        The threads are at least 16, more than the ends can hold.
        """
        head = int32(min((-(begin + shift)) % WIDTH, count))
        packs = int32((count - head) // WIDTH)
        for p in range(t, packs, threads):
            if inward:
                put_pack(shared, at + head + p * WIDTH, load_pack(memory, begin + head + p * WIDTH))
            else:
                store_pack(memory, begin + head + p * WIDTH, get_pack(shared, at + head + p * WIDTH))
        # At most WIDTH - 1 elements before the packs, and as many after them.
        ends = int32(count - packs * WIDTH)
        if t < ends:
            e = int32(t if t < head else t + packs * WIDTH)
            if inward:
                put(shared, at + e, load(memory, begin + e))
            else:
                store(memory, begin + e, get(shared, at + e))

    @device_function
    def copy_tile(memory, begin, row_size, shared, at, pitch, rows, columns, shift, t):
        """Copy whole rows as one run, by all threads; else a run for each row, and a warp for each run."""
        threads, warps, runs, length = THREADS, 1, int32(1), int32(rows * columns)
        if columns < row_size:
            threads, warps, runs, length = WARP, THREADS // WARP, rows, columns
        first = quotient(t, threads)
        lane = int32(t - first * threads)
        for r in range(first, runs, warps):
            copy_run(memory, begin + r * row_size, shared, int32(at + r * pitch), length, shift, lane, threads)

    return copy_tile


def make_steps(dtype, backward, limits):
    """Make the functions that compute in shared memory: `divide_by_areas`, `sum_rows` and `sum_columns`.

    Threads stand in rows along the columns: a thread keeps its column and walks down the lines.
    """
    sum_type, THREADS = sum_type_of(dtype), limits.threads

    @device_function
    def divide_by_areas(shared, at, pitch, heights, widths, rows, columns, t):
        """Share every element of a gradient out evenly over its window."""
        nx = threads_across(columns, THREADS)
        ty, ny = quotient(t, nx), quotient(THREADS, nx)
        if ty < ny:
            for c in range(int32(t - ty * nx), columns, nx):
                for r in range(ty, rows, ny):
                    shared[at + r * pitch + c] /= sum_type(heights[r] * widths[c])

    @device_function
    def sum_rows(shared, at, pitch, sums, top, bottom, count, columns, t):
        """Sum down the rows of each line's window."""
        nx = threads_across(columns, THREADS)
        ty, ny = quotient(t, nx), quotient(THREADS, nx)
        if ty < ny:
            for c in range(int32(t - ty * nx), columns, nx):
                for i in range(ty, count, ny):
                    kh = bottom[i] - top[i]
                    shared[sums + i * columns + c] = strided_sum(shared, int32(at + top[i] * pitch + c), kh, pitch)

    @device_function
    def sum_columns(shared, sums, columns, at, pitch, top, bottom, left, right, count, outputs, lanes, scratch, t):
        """Sum along the columns of each output's window, `lanes` threads each."""
        if lanes == 1:
            nx = threads_across(outputs, THREADS)
            ty, ny = quotient(t, nx), quotient(THREADS, nx)
            if ty < ny:
                for o in range(int32(t - ty * nx), outputs, nx):
                    first = left[o]
                    kw = right[o] - first
                    for i in range(ty, count, ny):
                        total = strided_sum(shared, int32(sums + i * columns + first), kw, int32(1))
                        if not backward:
                            total /= sum_type((bottom[i] - top[i]) * kw)
                        shared[at + i * pitch + o] = total
        else:
            team = quotient(t, lanes)
            lane = int32(t - team * lanes)
            for e0 in range(int32(0), int32(count * outputs), quotient(THREADS, lanes)):
                e = int32(min(e0 + team, count * outputs - 1))
                i = quotient(e, outputs)
                o = int32(e - i * outputs)
                first = int32(sums + i * columns)
                scratch[t] = lane_sum(shared, int32(first + left[o]), int32(first + right[o]), lane, lanes)
                cuda.syncthreads()
                total = strided_sum(scratch, int32(t - lane), lanes, int32(1))
                cuda.syncthreads()
                if not backward:
                    total /= sum_type((bottom[i] - top[i]) * (right[o] - left[o]))
                if lane == 0:
                    shared[at + i * pitch + o] = total

    return divide_by_areas, sum_rows, sum_columns
