"""The bridge between torch and NumPy: DLPack, one memory for two libraries.

The only room that knows what DLPack cannot say: that a tensor requires a gradient or has its negative bit set, and
bfloat16.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

# What memory holds, as NumPy and the kernels see it: half types travel as 16-bit integers, told apart by their sign.
_ARRAY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.int16),
    torch.bfloat16: np.dtype(np.uint16),
}


# The core of `from_dlpack`, which first asks of what kind its argument is.
_from_capsule = getattr(torch._C, "_from_dlpack", from_dlpack)


class _Exporter:
    """Hands a tensor's memory to NumPy: what ``Tensor.__dlpack__`` does, less the checks that `as_array`'s callers
    made."""

    __slots__ = ("tensor",)

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **_):
        return to_dlpack(self.tensor)

    def __dlpack_device__(self):
        return (1, 0)  # kDLCPU


def as_array(tensor: Tensor, channels_last: bool) -> np.ndarray:
    """Return the memory of a dense CPU tensor as a flat array, without a copy, in the order of memory.

    Float16 comes as int16 and bfloat16 as uint16.
    The tensor must be contiguous in the given format, with its negative bit resolved.
    """
    dtype = tensor.dtype
    if dtype is torch.float16 or dtype is torch.bfloat16:
        tensor = tensor.view(torch.int16)
    array = np.from_dlpack(_Exporter(tensor))
    if channels_last:
        array = array.transpose(0, 2, 3, 1)
    array = array.ravel()  # no copy: it is contiguous
    return array.view(np.uint16) if dtype is torch.bfloat16 else array


def empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, np.ndarray]:
    """Return a new tensor, and its memory as a flat array.

    NumPy allocates: it asks for huge pages where the array is large, and torch does not; a large result is written
    several times faster into huge pages.

    Raises
    ------
    RuntimeError
        If there is not so much memory, as torch's own allocator does.
    """
    try:
        memory = np.empty(math.prod(shape), _ARRAY_DTYPES[dtype])
        if channels_last:
            N, C, H, W = shape
            array = memory.reshape(N, H, W, C).transpose(0, 3, 1, 2)
        else:
            array = memory.reshape(shape)
    except (MemoryError, ValueError) as error:
        raise RuntimeError(f"adaptive_avg_pool2d: cannot allocate a result of shape {list(shape)}: {error}") from None
    if dtype is torch.bfloat16:
        # Not a view of another tensor, which autograd would refuse to change in place.
        storage = from_dlpack(memory.view(np.int16)).untyped_storage()
        strides = [stride // memory.itemsize for stride in array.strides]
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape, strides), memory
    array = array.view(np.float16) if dtype is torch.float16 else array
    return _from_capsule(array.__dlpack__()), memory
