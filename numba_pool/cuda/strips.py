"""``strips``: contiguous planes with windows of many rows or many columns.

Chosen where the windows are too large for ``tiles``; it takes windows of any size.

What it buys: sums down the rows stay in registers, so a window may be of any height, and loads need not wait for the
sums before them.
A block takes one line and as many outputs as its threads can read side by side, a pack of columns a thread.
Where that is fewer threads than it has, the others take every ``ny``-th row.
A window of more than `part_elements` elements is cut into parts of equal height (and equal width, if it is wider than a
block); every part is a block's work, and ``finish`` adds the parts.
"""

from functools import cache

from numba import cuda

from .device import end_index, int32, lane_sum, quotient, start_index, strided_sum, window_length
from .jit import compile_kernel
from .limits import LIMITS, full_width, strip_columns, sum_dtype
from .packs import ALIGNMENT, pack_of, sum_type_of


@cache
def strip_kernel(dtype, backward, width, limits=LIMITS):
    """Make the kernel ``strips`` for a type and a direction.

    `width` is a whole pack where each row starts at a multiple of 16 bytes, else 1; the order of the sums is the same.
    """
    pack = pack_of(dtype, width)
    load_pack, add, divide, zero, put = pack.load, pack.add, pack.divide, pack.zero, pack.put
    store, store_sum = pack_of(dtype, 1).store, pack_of(sum_dtype(dtype), 1).store
    THREADS, FULL, REACH = limits.threads, full_width(dtype), strip_columns(dtype, limits)
    SIZE, sum_type = THREADS * FULL, sum_type_of(dtype)

    @compile_kernel(registers=96 if backward else 64)
    def strips(src, dst, lines, sH, dH, sW, dW, across, nx, lanes, part_rows, row_parts, column_parts):
        strip = cuda.shared.array(SIZE, sum_type, alignment=ALIGNMENT)
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
                total /= sum_type(window_length(base + x, sW, dW))
            strip[x] = total
        cuda.syncthreads()

        # Along the columns of each window.
        team = quotient(t, lanes)
        lane = int32(t - team * lanes)
        for o0 in range(int32(0), outputs, quotient(THREADS, lanes)):
            o = int32(o0 + team)
            last = min(o, outputs - 1)
            begin = int32(max(start_index(ow0 + last, dW, sW), iw0) - base)
            end = int32(min(end_index(ow0 + last, dW, sW), iw1) - base)
            scratch[t] = lane_sum(strip, begin, end, lane, lanes)
            cuda.syncthreads()
            total = strided_sum(scratch, int32(t - lane), lanes, int32(1))
            cuda.syncthreads()
            if lane == 0 and o < outputs:
                index = line * dW + ow0 + o
                if parts > 1:
                    store_sum(dst, part * lines * dW + index, (total,))
                else:
                    if not backward:
                        total /= sum_type(rows * (end - begin))
                    store(dst, index, (total,))

    return strips
