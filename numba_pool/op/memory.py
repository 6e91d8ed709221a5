"""Memory formats, and new tensors."""

import ctypes
import mmap
import sys

import torch
from torch import Tensor

# From this size on, in bytes, new memory on the CPU is asked to consist of huge pages: written several times faster.
HUGE = 4 << 20
_HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)
_madvise = None
if sys.platform == "linux" and _HUGE_PAGES is not None:
    _madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if _madvise is not None:
        _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether the result for `tensor` is channels_last, by the rule of ATen's ``suggest_memory_format``.

    It looks at strides, not at contiguity, which cannot tell the formats apart where a size is 1.
    Source: ``is_channels_last_strides_2d`` in ``c10/core/MemoryFormat.h``.
    """
    if tensor.dim() != 4:
        return False
    N, C, H, W = tensor.shape
    if tensor.is_contiguous() and C > 1 and H * W > 1:
        return False
    n, c, h, w = tensor.stride()
    # Each stride spans all that lies within it; a plane of one element with one channel counts as contiguous.
    return c > 0 and C * c <= w and W * w <= h and H * h <= n and H * h != c and N * C * H * W > 0


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return torch's name for a memory format."""
    return torch.channels_last if channels_last else torch.contiguous_format


def empty(shape: tuple[int, ...], like: Tensor, channels_last: bool) -> Tensor:
    """Return a new tensor, not initialized, with the dtype and the device of another one."""
    if not channels_last:
        tensor = like.new_empty(*shape)  # as a tuple, the shape would cost half a microsecond
    else:
        _, C, H, W = shape
        tensor = like.new_empty_strided(shape, (H * W * C, 1, W * C, C))
    if tensor.nbytes >= HUGE and tensor.is_cpu and _madvise is not None:
        # Whole pages inside the tensor. It is a hint: what the system answers does not matter.
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise(begin, end - begin, _HUGE_PAGES)
    return tensor


def is_in_memory_order(tensor: Tensor, channels_last: bool) -> bool:
    """Return whether a tensor's values lie in one piece of memory, in a memory format."""
    # Without the keyword, the more common question takes half the time.
    contiguous = tensor.is_contiguous(memory_format=torch.channels_last) if channels_last else tensor.is_contiguous()
    return contiguous and not tensor.is_neg()
