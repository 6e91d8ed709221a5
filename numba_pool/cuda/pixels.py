"""``pixels``: channels_last tensors with small windows.

Chosen where a window holds at most 16 pixels, few enough for one thread.

What it buys: neighboring threads own neighboring packs of channels, so a warp loads and stores runs of memory, and no
thread waits for another.
A thread keeps its column and its channels while it walks down a group of lines, so the columns of its windows are
worked out once; the rows of the windows are worked out once for the whole block.
Neighboring windows share rows and columns, which the cache then holds.
"""

from functools import cache

from numba import cuda, types

from .device import end_index, fill_lengths, fill_windows, int32, start_index
from .jit import compile_kernel
from .limits import LIMITS
from .packs import pack_of


@cache
def pixel_kernel(dtype, backward, width, limits=LIMITS):
    """Make the kernel ``pixels`` for a type and a direction.

    `width` is a whole pack where pixels start at multiples of 16 bytes, else 1; the order of the sums is the same.
    """
    pack = pack_of(dtype, width)
    load, store, add, divide, zero = pack.load, pack.store, pack.add, pack.divide, pack.zero
    THREADS, LINES, COLUMNS = limits.threads, limits.lines, limits.columns

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
        fill_windows(top, bottom, line0, count, row0, dH, sH, t, THREADS)
        if backward:
            rows = int32(end_index(line0 + count - 1, dH, sH) - row0)
            fill_lengths(heights, row0, rows, sH, dH, t, THREADS)
            final = min(item0 + THREADS, dW * packs) - 1
            columns = int32(end_index(final // packs, dW, sW) - iw0)
            fill_lengths(widths, iw0, columns, sW, dW, t, THREADS)
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
