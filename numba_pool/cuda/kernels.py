"""The kernels by name: compiled for a device, and launched on a stream."""

from contextlib import nullcontext
from functools import lru_cache

from cuda.bindings.driver import cuCtxGetDevice
from cuda.core import Stream
from numba import cuda, types

from .bundles import bundle_kernel
from .finish import finish_kernel
from .jit import SIMULATED
from .limits import LIMITS
from .pixels import pixel_kernel
from .strips import strip_kernel
from .tiles import tile_kernel

KERNELS = {
    "tiles": tile_kernel,
    "strips": strip_kernel,
    "pixels": pixel_kernel,
    "bundles": bundle_kernel,
    "finish": finish_kernel,
}

# Numba warns of a grid of fewer than 128 blocks at every launch. Blocks without work leave at once, so small problems
# are launched with 128; the simulator, which runs blocks one by one, does without.
MIN_BLOCKS = 1 if SIMULATED else 128


def context_of(device):
    """Return what makes a device's context current: nothing where it already is, as a push costs microseconds.

    Autograd runs threads of its own, and a thread that has not called CUDA yet has no context at all.
    """
    failed, current = cuCtxGetDevice()
    return nullcontext() if not int(failed) and int(current) == device else cuda.gpus[device]


def compiled(kernel, options, dtype, backward, limits=LIMITS):
    """Return a kernel by its name and options, compiled for the device whose context is current."""
    dispatcher = KERNELS[kernel](dtype, backward, *options, limits)
    if not SIMULATED:
        arguments = dispatcher.py_func.__code__.co_argcount
        dispatcher.compile((types.int64,) * arguments).bind()
    return dispatcher


def run(kernels, launches, src, dst, scratch=None, stream=0, limits=LIMITS):
    """Launch kernels on `stream`, one after the other; return at once.

    Parameters
    ----------
    kernels : list of dispatcher
        What :func:`compiled` returned for each launch.
    launches : tuple of Launch
        What :func:`~numba_pool.cuda.plan.choose` chose.
    src, dst : int
        Device addresses of the first elements.
        In Numba's simulator, NumPy arrays of one dimension; halves travel as int16 (float16) or uint16 (bfloat16).
    scratch : int, optional
        Device address of scratch memory, a multiple of 16; needed where there are two launches.
    stream : int
        Handle of the CUDA stream to launch on, on the current device; 0 is the default stream.
    limits : BlockLimits
        Those with which the launches were chosen and the kernels compiled.
    """
    addresses = [(src, dst)] if len(launches) == 1 else [(src, scratch), (scratch, dst)]
    for kernel, launch, (source, target) in zip(kernels, launches, addresses, strict=True):
        grid = max(launch.blocks, MIN_BLOCKS), limits.threads, _stream_of(stream)
        kernel[grid](source, target, *launch.arguments)


@lru_cache(maxsize=64)
def _stream_of(handle):
    """Return the object of a stream; kept, as to make one takes longer than to choose and configure a launch."""
    return Stream.from_handle(handle)
