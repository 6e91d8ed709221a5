"""Small contiguous planes: turn planes into lanes, pool all of them at once, turn back.

Once turned, a plane is pooled as if it were channels_last: each lane has a plane of its own.
Lanes take several planes each, one after the other, so that what is turned is a run of memory, long enough to fill
whole vectors.
The bits of a plane do not depend on the planes beside it.
"""

from .runtime import kernel
from .simd import LANES, WIDE, no_unroll, prefetch, prefetch_write, scratch, splat, store
from .steps import copy, group_of, invert, pool_windows, round_up, scale_pixels, tables_of, transpose


@kernel
def pool_planes(src, dst, sizes, lo, hi):
    """Fill the planes `lo` to `hi` of `dst`."""
    no_unroll()
    sH, sW, dH, dW, _, average, _ = sizes
    tops, bottoms, heights, starts, ends, widths, weight, row_spreads, column_spreads = tables_of(src, sizes)
    shares = scratch(src, row_spreads.size * column_spreads.size)
    for i in range(shares.size):
        shares[i] = row_spreads[i // sW] * column_spreads[i % sW]
    invert(shares)

    length, results = sH * sW, dH * dW
    most, size = group_of(hi - lo, WIDE, max(length, results))
    a = scratch(src, size * max(length, results) + WIDE * LANES)
    b = scratch(src, size * max(length, results) + WIDE * LANES)
    height = scratch(src, WIDE)
    while lo < hi:
        n = min(size, hi - lo)
        lanes = min(most, round_up(n, LANES))
        deep = (n + lanes - 1) // lanes
        # Turning reads and writes up to 15 elements more than what is asked for; those must belong to other planes.
        last = (hi - lo - n) * min(length, results) < LANES
        if last:
            copy(src, lo * length, a, 0, n * length)
            # Lanes without a plane are computed with, too: whatever memory holds might be slow numbers.
            a[n * length : lanes * deep * length] = 0
            transpose(a, 0, lanes, deep * length, deep * length, b, 0, lanes)
        else:
            transpose(src, lo * length, lanes, deep * length, deep * length, b, 0, lanes)
        for q in range(deep):
            if average == 0:
                scale_pixels(b, q * length * lanes, length, lanes, shares, 0)
            for oh in range(dH):
                i, to = (q * length + tops[oh] * sW) * lanes, (q * results + oh * dW) * lanes
                store(height, 0, splat(height, heights[oh], WIDE))
                pool_windows(
                    b, i, sW * lanes, bottoms[oh] - tops[oh], starts, ends, 0, dW, lanes, weight, height, 0, 0, widths,
                    a, to,
                )  # fmt: skip
                # Memory is asked for while results are computed: where these go, and where the next group lies.
                for p in range(to, to + dW * lanes, LANES):
                    prefetch_write(dst, lo * results + p)
                for p in range(oh * length // dH * lanes, (oh + 1) * length // dH * lanes, LANES):
                    prefetch(src, (lo + n + q * lanes) * length + p)
        if last:
            transpose(a, 0, deep * results, lanes, lanes, b, 0, deep * results)
            copy(b, 0, dst, lo * results, n * results)
        else:
            transpose(a, 0, deep * results, lanes, lanes, dst, lo * results, deep * results)
        lo += n
