"""Windows that are runs of memory, one to a plane: the global average above all, and its gradient."""

from .runtime import kernel
from .simd import (
    LANES,
    WIDE,
    as_sum,
    load,
    load_first,
    load_scalar,
    no_unroll,
    prefetch,
    reduce_add,
    splat,
    store,
    store_first,
    store_scalar,
)
from .steps import part_of

# Arrays of more elements are asked for ahead, by so many elements: 15 % faster (case "plane 4096 to 1").
LARGE = 1 << 23
AHEAD = 1024


@kernel
def sum_runs(src, dst, sizes, lo, hi):
    """Fill the elements `lo` to `hi` of `dst`, each with the mean of a run; or the sum of a part of it."""
    no_unroll()
    length, parts = sizes.sW, sizes.parts
    narrow = splat(src, 0.0, LANES)
    area = as_sum(src, length if sizes.average == 1 and parts == 1 else 1)
    ahead = src.size >= LARGE
    source, part = lo // parts, lo % parts
    for run in range(lo, hi):
        i, end = part_of(source * length, length, part, parts)
        s = narrow
        while i + WIDE <= end:
            if ahead:
                for line in range(i + AHEAD, i + AHEAD + WIDE, LANES):
                    prefetch(src, line)
            s = s + (
                (load(narrow, src, i) + load(narrow, src, i + LANES))
                + (load(narrow, src, i + 2 * LANES) + load(narrow, src, i + 3 * LANES))
            )
            i += WIDE
        while i + LANES <= end:
            s = s + load(narrow, src, i)
            i += LANES
        if i < end:
            s = s + load_first(narrow, src, i, end - i)
        store_scalar(dst, run, reduce_add(s) / area)
        part += 1
        if part == parts:
            source, part = source + 1, 0


@kernel
def spread_runs(src, dst, sizes, lo, hi):
    """Fill the runs `lo` to `hi` of `dst`, or parts of them, each with an equal share of an element of `src`."""
    no_unroll()
    length, parts = sizes.dW, sizes.parts
    area = as_sum(src, 1 if sizes.average == 1 else length)
    source, part = lo // parts, lo % parts
    for _ in range(lo, hi):
        i, end = part_of(source * length, length, part, parts)
        share = load_scalar(src, source) / area
        wide, narrow = splat(src, share, WIDE), splat(src, share, LANES)
        while i + WIDE <= end:
            store(dst, i, wide)
            i += WIDE
        while i + LANES <= end:
            store(dst, i, narrow)
            i += LANES
        if i < end:
            store_first(dst, i, narrow, end - i)
        part += 1
        if part == parts:
            source, part = source + 1, 0
