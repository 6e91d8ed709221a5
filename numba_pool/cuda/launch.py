"""From torch tensors to the kernels: addresses through DLPack, torch's current stream, no synchronization.

A kernel needs of a tensor where its memory begins; its sizes travel as integers.
So DLPack is asked for a tensor's address, and kernels are launched on the stream on which torch would launch.
numba-cuda and the kernels are imported with the first tensor.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from ..dlpack import address
from .plan import choose

DTYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def pool(src: Tensor, dst: Tensor, backward: bool) -> None:
    """Launch what fills `dst` with the window sums of `src`, on torch's current stream of their device."""
    kernels = load_kernels()
    dtype, device = DTYPES[src.dtype], src.get_device()
    # Where both tensors are contiguous as they stand, the two memory formats are one (or only one was meant).
    C = 1 if src.is_contiguous() and dst.is_contiguous() else src.shape[1]
    sH, sW, dH, dW = *src.shape[-2:], *dst.shape[-2:]
    planes = src.numel() // (sH * sW * C)
    src_address, dst_address = address(src), address(dst)
    shifts = src_address % 16 // src.element_size(), dst_address % 16 // dst.element_size()
    processors = _processors(device, dtype == "bfloat16")
    launches, scratch_bytes = choose(dtype, backward, planes, sH, sW, dH, dW, C, *shifts, processors)
    # Torch's allocator keeps the scratch memory for this stream, so it may go back as soon as the launch is queued.
    scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=src.device) if scratch_bytes else None
    stream = torch.cuda.current_stream(device).cuda_stream
    scratch_address = None if scratch is None else scratch.data_ptr()
    compiled = [_compiled(launch.kernel, launch.options, dtype, backward, device) for launch in launches]
    with kernels.context_of(device):
        kernels.run(compiled, launches, src_address, dst_address, scratch_address, stream)


@cache
def load_kernels():
    """Import numba-cuda and the kernels; raise ImportError with advice where that fails."""
    if find_spec("numba_cuda") is None:
        raise ImportError(f"numba_pool needs numba-cuda for CUDA tensors. {_advice()}.")
    try:
        return import_module(".kernels", __package__)
    except Exception as error:
        raise _unusable("cannot import numba-cuda", error) from error


@cache
def _compiled(kernel, options, dtype, backward, device):
    """Return a kernel that is compiled for a device; raise ImportError with advice where that fails."""
    kernels = load_kernels()
    try:
        with kernels.context_of(device):
            return kernels.compiled(kernel, options, dtype, backward)
    except Exception as error:
        raise _unusable("cannot compile its CUDA kernels", error) from error


def _unusable(what, error):
    """Return the error to raise where numba-cuda fails: with anything, where it does not fit Numba or NumPy."""
    return ImportError(
        f"numba_pool {what}: {type(error).__name__}: {error}. {_advice()}. "
        "numba-cuda 0.30 does not work with NumPy 2.5: there, pip install 'numpy<2.5'."
    )


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
