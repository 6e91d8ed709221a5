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
    # Each stride spans the axes within it; where only the channels count, the tensor is contiguous too, and is so.
    return c > 0 and C * c <= w and W * w <= h and H * h <= n and H * h != c and N * C * H * W > 0


def forward(input: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Pool a checked tensor to `output_size`, ``(oH, oW)``."""
    *batch, H, W = input.shape
    return _launch("forward", input, batch, (H, W), output_size, is_channels_last(input), output_size)


def backward(grad_output: Tensor, input_size: tuple[int, int], channels_last: bool) -> Tensor:
    """Spread a checked gradient over an input of height and width `input_size`, in the input's memory format."""
    *batch, oH, oW = grad_output.shape
    if oH == 0 or oW == 0:
        check_grad_output(grad_output, input_size)
    return _launch("backward", grad_output, batch, input_size, (oH, oW), channels_last, input_size)


def _launch(direction, source, batch, input_size, output_size, channels_last, target_size):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if input_size == output_size:
        return source.clone(memory_format=memory_format)
    source = source.contiguous(memory_format=memory_format)
    if source.is_neg():
        source = source.resolve_neg()
    shape = (*batch, *target_size)
    if source.is_cuda:
        from . import _cuda_bridge

        target = torch.empty(shape, dtype=source.dtype, device=source.device, memory_format=memory_format)
        if target.numel():
            getattr(_cuda_bridge, direction)(source, target)
        return target
    target, memory = _dlpack.empty(shape, source.dtype, channels_last)
    if memory.size:
        planes, inner = (batch[0], batch[1]) if channels_last else (math.prod(batch), 1)
        array = _dlpack.as_array(source, channels_last)
        kernel = cpu.forward if direction == "forward" else cpu.backward
        (H, W), (oH, oW) = input_size, output_size
        kernel(array, memory, planes, H, W, inner, oH, oW, torch.get_num_threads())
    return target
