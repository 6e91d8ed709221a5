"""How kernels and device functions are compiled; in Numba's simulator, they stay the Python functions that they are."""

from numba import config, cuda

try:
    from numba.cuda.extending import intrinsic
except ImportError:  # before numba-cuda had its own, Numba's served
    from numba.extending import intrinsic

__all__ = ["SIMULATED", "compile_kernel", "device_function", "intrinsic"]

SIMULATED = bool(config.ENABLE_CUDASIM)


def compile_kernel(registers=64):
    """Compile a kernel for at most so many registers a thread.

    A multiprocessor has 65536: with 64, it holds four blocks of 256 threads, and while one waits for memory three work.
    """
    return cuda.jit if SIMULATED else cuda.jit(max_registers=registers)


def device_function(function):
    """Let kernels call `function`, which Numba copies into every kernel that does.

    So kernels compile to PTX on computers without a GPU too.
    """
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)
