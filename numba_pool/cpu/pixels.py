"""channels_last tensors of sixteen channels and more: every lane has a channel of its own.

Windows of few pixels are added up directly, and so are wide ones, a run of pixels after the other.
Of all others the rows come first, then the columns of the sums: neighboring windows share what they overlap in.
"""

import numpy as np

from .runtime import kernel
from .simd import WIDE, move, no_unroll, scratch, splat, store
from .steps import CHAIN, ROWS, invert, pool_windows, scale_pixels, sum_rows, tables_of


@kernel
def pool_pixels(src, dst, sizes, lo, hi):
    """Fill the lines `lo` to `hi` of `dst`."""
    no_unroll()
    sH, sW, dH, dW, C, average, parts = sizes
    tops, bottoms, heights, starts, ends, widths, weight, row_shares, shares = tables_of(src, sizes)
    invert(row_shares)
    invert(shares)
    dH *= parts  # every part of a line is a line of its own

    few = average == 1 and (sH // dH + 2) * (sW // dW + 2) <= CHAIN
    wide = average == 1 and sW // dW >= ROWS
    pitch = sW * C
    sums = scratch(src, (1 if few else dW * C if wide else pitch) + WIDE)
    height = scratch(src, WIDE)
    columns = np.arange(dW + 1)
    # The sums of wide windows are pixels that are windows of their own.
    lefts, rights = (columns[:-1], columns[1:]) if wide else (starts, ends)
    plane, row, top, bottom = lo // dH, lo % dH, -1, -1
    for line in range(lo, hi):
        to = line * dW * C
        store(height, 0, splat(height, heights[row], WIDE))
        new = row == 0 or top != tops[row] or bottom != bottoms[row]
        top, bottom = tops[row], bottoms[row]
        i = (plane * sH + top) * pitch
        if not new:
            move(dst, to - dW * C, to, dW * C)
        elif few:
            pool_windows(src, i, pitch, bottom - top, starts, ends, 0, dW, C, weight, height, 0, 0, widths, dst, to)
        else:
            if wide:
                for ow in range(dW):
                    for r in range(bottom - top):
                        a = i + r * pitch + starts[ow] * C
                        sum_rows(src, a, C, ends[ow] - starts[ow], C, row_shares, 0, r > 0, sums, ow * C)
            else:
                sum_rows(src, i, pitch, bottom - top, pitch, row_shares, top, False, sums, 0)
                if average == 0:
                    scale_pixels(sums, 0, sW, C, shares, 0)
            pool_windows(sums, 0, 1, 1, lefts, rights, 0, dW, C, weight, height, 0, 0, widths, dst, to)
        row += 1
        if row == dH:
            plane, row = plane + 1, 0
