"""``bundles``: channels_last tensors with large windows.

Chosen where the windows are too large for ``pixels``; it takes windows of any size.

What it buys: a bundle of neighboring channels is summed by the whole block, so that one image is enough to keep a
device busy.
``nx`` threads stand side by side along the channels; the others take every ``ny``-th pixel of the window.
A window of many pixels is cut into parts, as in ``strips``, and ``finish`` adds them.
"""

from functools import cache

from numba import cuda

from .device import int32, quotient, start_index, strided_sum, window_length
from .jit import compile_kernel
from .limits import LIMITS, full_width, sum_dtype
from .packs import ALIGNMENT, pack_of, sum_type_of


@cache
def bundle_kernel(dtype, backward, width, limits=LIMITS):
    """Make the kernel ``bundles`` for a type and a direction.

    `width` is a whole pack where pixels start at multiples of 16 bytes, else 1; the order of the sums is the same.
    """
    pack = pack_of(dtype, width)
    load, add, divide, zero, put = pack.load, pack.add, pack.divide, pack.zero, pack.put
    store, store_sum = pack_of(dtype, 1).store, pack_of(sum_dtype(dtype), 1).store
    THREADS, FULL = limits.threads, full_width(dtype)
    SIZE, sum_type = THREADS * FULL, sum_type_of(dtype)

    @compile_kernel(registers=96 if backward else 80)
    def bundles(src, dst, lines, sH, dH, sW, dW, C, nx, part_pixels, parts):
        bundle = cuda.shared.array(SIZE, sum_type, alignment=ALIGNMENT)
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
        step, to_next_row = (down * sW + right) * C, (sW - kw) * C
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
                        index += to_next_row
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
                    total /= sum_type(kh * kw)
                store(dst, index, (total,))

    return bundles
