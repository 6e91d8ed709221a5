"""What the package runs on, and compiling ahead of the first call."""

import platform

import numba
import numpy as np
import torch

from . import cpu
from .dlpack import FLAT_TENSORS
from .op import autograd
from .op.checks import check_kind


def show_config() -> None:
    """Print the versions, the threads and the devices that numba_pool computes with.

    Examples
    --------
    >>> from numba_pool import show_config
    >>> show_config()
    numba_pool ...
    Python     ...
    torch      ...
    numba      ...
    numpy      ...
    CPU threads      ...
    threading layer  ...
    CUDA             ...
    """
    from . import __version__

    print(f"numba_pool {__version__}")
    print(f"Python     {platform.python_version()}")
    print(f"torch      {torch.__version__}")
    print(f"numba      {numba.__version__}")
    print(f"numpy      {np.__version__}")
    print(f"CPU threads      {torch.get_num_threads()} of torch, {numba.config.NUMBA_NUM_THREADS} in Numba's pool")
    print(f"threading layer  {_threading_layer()}")
    print(f"CUDA             {_cuda()}")


def _threading_layer():
    try:
        return numba.threading_layer()
    except ValueError:
        return f"chosen at the first parallel call (NUMBA_THREADING_LAYER is {numba.config.THREADING_LAYER!r})"


def _cuda():
    if torch.version.cuda is None:
        return "no: this build of torch has no CUDA"
    if not torch.cuda.is_available():
        return f"no: torch {torch.__version__} finds no usable NVIDIA GPU"
    try:
        from .cuda import launch

        launch.load_kernels()
    except ImportError as error:
        return f"no: {error}"
    return f"yes: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


# Sizes that reach every CUDA kernel, forward and backward: windows of many pixels and of few, whole planes, small
# planes, and a window in parts; with rows that begin where wide loads can, and with others.
_WARM_UP = [
    (shape, output_size)
    for odd in (0, 1)
    for shape, output_size in (
        ((16, 8 - odd, 32, 64 - odd), (3, 5)),
        ((16, 8 - odd, 32, 64 - odd), (16, 32)),
        ((16, 8 - odd, 32, 64 - odd), (1, 1)),
        ((64, 64 - odd, 7, 8 - odd), (5, 5)),
        ((8, 8 - odd, 2100, 16 - odd), (1, 2)),
        ((8, 8 - odd, 1, 2), (2100, 16 - odd)),
    )
]


def precompile(
    dtypes=(torch.float32,),
    memory_formats=(torch.contiguous_format, torch.channels_last),
    device="cpu",
) -> None:
    """Compile the kernels, forward and backward, before they are first needed.

    Numba compiles a kernel when it is first called with a new type of argument.
    The compiled code is kept in Numba's cache folder, so the next process loads it instead.

    Parameters
    ----------
    dtypes : sequence of torch.dtype
        Any of float32, float64, float16 and bfloat16.
    memory_formats : sequence of torch.memory_format
        ``torch.contiguous_format``, ``torch.channels_last``, or both.
    device : torch.device or str
        ``"cpu"``, or a CUDA device.

    Raises
    ------
    NotImplementedError
        If a dtype or the device is not supported.

    Examples
    --------
    >>> import torch
    >>> from numba_pool import precompile
    >>> precompile(dtypes=[torch.float32], memory_formats=[torch.contiguous_format])
    """
    for dtype in dtypes:
        for memory_format in memory_formats:
            channels_last = memory_format is torch.channels_last
            check_kind("precompile", torch.empty(0, dtype=dtype, device=device))
            if torch.device(device).type == "cpu":
                cpu.precompile(FLAT_TENSORS[dtype], channels_last)
                continue
            for shape, output_size in _WARM_UP:
                input = torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=memory_format)
                output = autograd.pool(input, output_size)
                autograd.pool_backward(output, shape[-2:], channels_last)
