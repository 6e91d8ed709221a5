"""The device functions that kernels share: windows, how threads share work, and sums in a fixed order.

None of them waits for other threads or asks which thread it runs in; kernels do.
"""

from typing import Any

import numpy as np
from numba import types

from .. import windows
from .jit import SIMULATED, device_function, intrinsic

# Numba adds and multiplies integers in 64 bits; what counts inside a block is kept in 32, for fewer registers.
int32: Any = np.int32

start_index = device_function(windows.start_index)
end_index = device_function(windows.end_index)


@device_function
def window_length(i, size, other_size):
    """Return how many elements the window of `i` holds."""
    return end_index(i, size, other_size) - start_index(i, size, other_size)


@device_function
def fill_windows(starts, ends, first, count, origin, size, other_size, t, threads):
    """Fill two tables with where the windows of `count` indices from `first` on start and end, counted from `origin`.

    Thread `t` of `threads` fills its share.
    """
    for i in range(t, count, threads):
        starts[i] = start_index(first + i, size, other_size) - origin
        ends[i] = end_index(first + i, size, other_size) - origin


@device_function
def fill_lengths(lengths, first, count, size, other_size, t, threads):
    """Fill a table with how many elements the windows of `count` indices from `first` on hold."""
    for i in range(t, count, threads):
        lengths[i] = window_length(first + i, size, other_size)


@device_function
def threads_across(columns, threads):
    """Return how many of `threads` stand side by side along `columns`, so that few are left over.

    All of them, or an equal share of the columns when there are more than half as many columns as threads.
    """
    rounds = quotient(2 * columns + threads - 1, threads)
    return quotient(columns + rounds - 1, rounds)


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
def lane_sum(values, begin, end, lane, lanes):
    """Return what one of `lanes` threads adds to ``values[begin] + … + values[end - 1]``: every `lanes`-th value.

    Neighboring lanes read neighboring values, so no two of them wait for the same bank of shared memory.
    """
    return strided_sum(values, int32(begin + lane), quotient(end - begin - lane + lanes - 1, lanes), lanes)


def _unsigned_quotient():
    if SIMULATED:
        return lambda a, b: np.int32(a // b)

    @intrinsic
    def quotient(typingctx, a, b):
        def codegen(context, builder, signature, args):
            pairs = zip(args, signature.args, strict=True)
            return builder.udiv(*(context.cast(builder, arg, kind, types.int32) for arg, kind in pairs))

        return types.int32(a, b), codegen

    return quotient


# ``a // b`` for numbers from 0 to 2**31 - 1: half as many instructions as the division of 64-bit integers.
quotient = _unsigned_quotient()
