"""``finish``: adds the parts of windows that several blocks shared.

Launched after ``strips`` or ``bundles`` where these cut windows into parts.

What it buys: one huge window keeps a whole device busy, and still has the same bits in every run.
"""

from functools import cache

from numba import cuda

from .device import int32, strided_sum, window_length
from .jit import compile_kernel
from .limits import LIMITS, sum_dtype
from .packs import pack_of, sum_type_of


@cache
def finish_kernel(dtype, backward, limits=LIMITS):
    """Make the kernel ``finish`` for a type and a direction.

    It adds the parts of every window in order, and forward divides by the window's area.
    `lanes` neighboring threads share the parts of an output.
    ``partial[part * count + index]`` is part `part` of output `index`.
    """
    load_sum = pack_of(sum_dtype(dtype), 1).load
    store, zero = pack_of(dtype, 1).store, pack_of(dtype, 1).zero
    THREADS, sum_type = limits.threads, sum_type_of(dtype)

    @compile_kernel()
    def finish(partial, dst, count, parts, lanes, C, sH, dH, sW, dW):
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
                line, ow = index // C // dW, index // C % dW
                total /= sum_type(window_length(line, dH, sH) * window_length(ow, dW, sW))
            store(dst, index, (total,))

    return finish
