"""From checked tensors to the kernels of their device and layout."""

import math

import torch
from torch import Tensor

from . import _dlpack
from ._validation import check_grad_output
from .kernels import cpu


def is_channels_last(tensor: Tensor) -> bool:
    """Say whether the result for `tensor` is channels_last, by the rule of ATen's ``suggest_memory_format``.

    It looks at strides, not at contiguity, which cannot tell the formats apart where a size is 1.
    Source: ``is_channels_last_strides_2d`` in ``c10/core/MemoryFormat.h``.
    """
    if tensor.dim() != 4 or (tensor.is_contiguous() and not tensor.is_contiguous(memory_format=torch.channels_last)):
        return False
    N, C, H, W = tensor.shape
    n, c, h, w = tensor.stride()
    # Each stride spans all that lies within it; a plane of one element with one channel counts as contiguous.
    return c > 0 and C * c <= w and W * w <= h and H * h <= n and H * h != c and N * C * H * W > 0


def forward(input: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Pool a checked tensor to `output_size`, ``(oH, oW)``."""
    channels_last = is_channels_last(input)
    return _launch("forward", input, output_size, channels_last, channels_last)


def backward(grad_output: Tensor, input_size: tuple[int, int], channels_last: bool) -> Tensor:
    """Spread a checked gradient over an input of height and width `input_size`, in the input's memory format."""
    if 0 in grad_output.shape[-2:]:
        check_grad_output(grad_output, input_size)
    as_channels_last = channels_last
    if input_size == (1, 1) and grad_output.is_cpu:
        # A plane of one element is the same memory in both formats: the gradient can be read as it is laid out.
        as_channels_last = is_channels_last(grad_output)
    return _launch("backward", grad_output, input_size, as_channels_last, channels_last)


def _launch(direction, source, size, channels_last, result_channels_last):
    """Return the result of one direction, of height and width `size`."""
    result_format = _memory_format(result_channels_last)
    *batch, H, W = source.shape
    if size == (H, W):
        return source.clone(memory_format=result_format)
    source = source.contiguous(memory_format=_memory_format(channels_last))
    if source.is_neg():
        source = source.resolve_neg()
    if source.is_cuda:
        from . import _cuda_bridge

        target = torch.empty((*batch, *size), dtype=source.dtype, device=source.device, memory_format=result_format)
        if target.numel():
            (_cuda_bridge.forward if direction == "forward" else _cuda_bridge.backward)(source, target)
        return target
    target, memory = _dlpack.empty((*batch, *size), source.dtype, result_channels_last)
    if memory.size:
        planes, inner = (batch[0], batch[1]) if channels_last else (math.prod(batch), 1)
        array = _dlpack.as_array(source, channels_last)
        (h, w), threads = size, torch.get_num_threads()
        if direction == "forward":
            cpu.forward(array, memory, planes, H, W, inner, h, w, threads)
        else:
            cpu.backward(array, memory, planes, h, w, inner, H, W, threads)
    return target


def _memory_format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format
