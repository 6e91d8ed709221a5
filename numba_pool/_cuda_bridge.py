"""The bridge between torch and the CUDA kernels: addresses through DLPack, torch's current stream, no synchronization.

A kernel needs of a tensor where its memory begins; its sizes travel as integers.
So the bridge asks DLPack for a tensor's address, and launches on the stream on which torch would launch.
It is imported with the first CUDA tensor, and so are numba-cuda and the kernels.
"""

from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ._dlpack import address

_DTYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def forward(input: Tensor, output: Tensor) -> None:
    """Launch the average of every window of `input` into `output`, on torch's current stream of their device.

    Parameters
    ----------
    input : Tensor
        Shape ``(…, H, W)``, on a CUDA device, not empty, contiguous or channels_last.
    output : Tensor
        Shape ``(…, oH, oW)``, with the device, dtype and memory format of `input`.

    Raises
    ------
    ImportError
        If numba-cuda, or the CUDA toolkit that it needs, is not installed; the message names what to install.
    RuntimeError
        If the device cannot work with the dtype: bfloat16 needs compute capability 8.0 or later.
    """
    _launch("forward", input, output, *input.shape[-2:], *output.shape[-2:])


def backward(grad_output: Tensor, grad_input: Tensor) -> None:
    """Launch the gradient of :func:`forward`: `grad_output`, ``(…, oH, oW)``, into `grad_input`, ``(…, H, W)``.

    Conditions and errors are those of :func:`forward`.
    Every element of `grad_input` is written once, by a gather: no atomics, the same bits in every run.
    """
    _launch("backward", grad_output, grad_input, *grad_input.shape[-2:], *grad_output.shape[-2:])


def _launch(direction, src, dst, H, W, oH, oW):
    kernels, context_of, support_errors = _cuda_room()
    dtype, device = _DTYPES[src.dtype], src.get_device()
    # Where both tensors are contiguous as they stand, the two memory formats are one (or only one was meant).
    inner = 1 if src.is_contiguous() and dst.is_contiguous() else src.shape[1]
    planes = src.numel() // (src.shape[-2] * src.shape[-1] * inner)
    src_address, dst_address = address(src), address(dst)
    itemsize = src.element_size()
    shifts = src_address % 16 // itemsize, dst_address % 16 // itemsize
    plan = getattr(kernels, direction)(
        dtype, planes, H, W, oH, oW, inner, *shifts, device, _processors(device, dtype == "bfloat16")
    )
    stream = torch.cuda.current_stream(device).cuda_stream
    # Torch's allocator keeps the scratch memory for this stream, so it may go back as soon as the launch is queued.
    scratch = torch.empty(plan.scratch, dtype=torch.uint8, device=src.device) if plan.scratch else None
    try:
        with context_of(device):
            plan.run(src_address, dst_address, scratch.data_ptr() if scratch is not None else None, stream)
    except support_errors as error:
        raise ImportError(f"numba_pool cannot compile its CUDA kernels: {error}. {_advice()}") from error


@cache
def _cuda_room():
    """Import numba-cuda and the kernels once; say what is missing where that fails."""
    if find_spec("numba_cuda") is None:
        raise ImportError(f"numba_pool needs numba-cuda for CUDA tensors. {_advice()}")
    try:
        from cuda.bindings.driver import cuCtxGetDevice
        from numba import cuda
        from numba.cuda.cudadrv.error import CudaSupportError, NvvmSupportError

        from .kernels import cuda as kernels
    except ImportError as error:
        raise ImportError(f"numba_pool cannot import numba-cuda: {error}. {_advice()}") from error

    def context_of(device):
        """Return what makes a device's context current: nothing, where it already is, as a push costs microseconds.

        Autograd runs threads of its own, and a thread that has not called CUDA yet has no context at all.
        """
        failed, current = cuCtxGetDevice()
        return nullcontext() if not int(failed) and int(current) == device else cuda.gpus[device]

    return kernels, context_of, (CudaSupportError, NvvmSupportError)


def _advice():
    toolkit = "cuda12" if (torch.version.cuda or "").startswith("12.") else "cuda13"
    return f"Install it with: pip install 'numba_pool[{toolkit}]'"


@cache
def _processors(device, bfloat16):
    """Return how many multiprocessors a device has, once it is known to have the instructions for the dtype."""
    properties = torch.cuda.get_device_properties(device)
    if bfloat16 and properties.major < 8:
        raise RuntimeError(
            f"numba_pool: bfloat16 needs a GPU of compute capability 8.0 or later; {properties.name} has "
            f"{properties.major}.{properties.minor}"
        )
    return properties.multi_processor_count
