"""Windows of very many elements: their parts are lines of their own, and are added up here."""

import numpy as np

from .runtime import kernel
from .simd import load_scalar, no_unroll, store_scalar
from .steps import windows_of


@kernel
def add_parts(src, dst, sizes, lo, hi):
    """Fill the lines `lo` to `hi` of `dst` from the parts of each, which lie one after the other in `src`.

    The sum is kept in float64: there is one addition for thousands of elements.
    """
    no_unroll()
    sH, sW, dH, dW, C, average, parts = sizes
    one = np.int64(1)  # a literal 1 would be compiled for again
    _, _, heights = windows_of(src, dH, sH, one)
    _, _, widths = windows_of(src, dW, sW, one)
    length = dW * C
    for line in range(lo, hi):
        row = line % dH
        for i in range(length):
            s = 0.0
            for part in range(parts):
                s += load_scalar(src, (line * parts + part) * length + i)
            if average == 1:
                s /= np.float64(heights[row]) * widths[i // C]
            store_scalar(dst, line * length + i, s)
