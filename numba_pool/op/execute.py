"""From tensors to the kernels of their device and memory format."""

import torch
from torch import Tensor

from .. import cpu
from ..dlpack import FLAT_TENSORS
from .checks import check_grad_output, check_input, raise_no_memory
from .memory import empty, is_channels_last, is_in_memory_order
from .torch_private import is_zero_tensor

# What does not lie in one piece of memory is copied some samples at a time, of about so many elements for each thread:
# few enough to stay in the caches until they are read.
PART = 1 << 18


def forward(input: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Pool a tensor to ``(oH, oW)``; raise unless it can be pooled."""
    check_input(input)
    channels_last = is_channels_last(input)
    return _pool("forward", input, output_size, channels_last, channels_last)


def backward(grad_output: Tensor, input_size: tuple[int, int], channels_last: bool) -> Tensor:
    """Spread a gradient over an input of height and width `input_size`, in the input's memory format."""
    if not grad_output.numel():
        check_grad_output(grad_output, input_size)  # an empty batch passes, empty planes do not
    # A plane of one element is the same memory in both formats: there a gradient is read as it is laid out.
    reads_channels_last = is_channels_last(grad_output) if input_size == (1, 1) else channels_last
    return _pool("backward", grad_output, input_size, reads_channels_last, channels_last)


def _pool(direction, source, target_size, reads_channels_last, channels_last):
    """Return the target of `target_size` for `source`, which is read in one memory format and written in another."""
    *batch, h, w = source.shape
    shape = (*batch, *target_size)
    if 0 in shape or source.is_meta:
        return empty(shape, source, channels_last)
    if source.data_ptr() == source.storage_offset() * source.itemsize:  # the storage begins at 0: it has no memory
        if is_zero_tensor(source):
            return empty(shape, source, channels_last).zero_()
        raise_no_memory(source)
    target = empty(shape, source, channels_last)
    if target_size == (h, w):
        return target.copy_(source)
    _fill(direction, source, target, reads_channels_last, h, w, *target_size)
    return target


def _fill(direction, source, target, reads_channels_last, h, w, th, tw):
    """Fill `target` from `source`, which is copied first where it does not lie in one piece of memory."""
    if not is_in_memory_order(source, reads_channels_last):
        samples = max(1, torch.get_num_threads() * PART * len(source) // source.numel())
        if source.is_cpu and samples < len(source):
            for part, its_target in zip(source.split(samples), target.split(samples), strict=True):
                _fill(direction, part, its_target, reads_channels_last, h, w, th, tw)
            return
        source = empty(tuple(source.shape), source, reads_channels_last).copy_(source)
    if not source.is_cpu:
        from .. import cuda

        getattr(cuda, direction)(source, target)
        return
    C = source.size(1) if reads_channels_last else 1
    planes = source.numel() // (h * w * C)
    tensor_type, threads = FLAT_TENSORS[source.dtype], torch.get_num_threads()
    if direction == "forward":
        cpu.forward(source, target, tensor_type, planes, h, w, th, tw, C, threads)
    else:
        cpu.backward(source, target, tensor_type, planes, th, tw, h, w, C, threads)
    if torch.get_num_threads() != threads:
        # Numba's OpenMP layer has set its own number, and torch may use the same OpenMP library.
        torch.set_num_threads(threads)
