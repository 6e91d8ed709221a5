"""From checked tensors to the kernels of their device and layout."""

import torch
from torch import Tensor

from . import _dlpack
from .kernels import cpu


def is_channels_last(tensor: Tensor) -> bool:
    """Say whether the result for `tensor` is channels_last, by the rule of ATen's ``suggest_memory_format``.

    It looks at strides, not at contiguity, which cannot tell the formats apart where a size is 1.
    Source: ``is_channels_last_strides_2d`` in ``c10/core/MemoryFormat.h``.
    """
    if tensor.dim() != 4:
        return False
    sizes, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        if sizes[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(sizes[axis], 1)
    return True


def forward(input: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Pool a checked tensor to `output_size`, ``(oH, oW)``."""
    channels_last = is_channels_last(input)
    shape = (*input.shape[:-2], *output_size)
    if input.shape == shape:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return input.clone(memory_format=memory_format)
    return _launch(input, shape, channels_last, *input.shape[-2:], *output_size, "forward")


def backward(grad_output: Tensor, input_size: tuple[int, int], channels_last: bool) -> Tensor:
    """Spread a checked gradient over an input of height and width `input_size`, in the input's memory format."""
    shape = (*grad_output.shape[:-2], *input_size)
    if grad_output.shape == shape:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return grad_output.clone(memory_format=memory_format)
    return _launch(grad_output, shape, channels_last, *input_size, *grad_output.shape[-2:], "backward")


def _launch(source, shape, channels_last, H, W, oH, oW, direction):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    source = source.contiguous(memory_format=memory_format)
    if source.is_neg():
        source = source.resolve_neg()
    inner = shape[1] if channels_last else 1
    if source.is_cuda:
        from . import _cuda_bridge

        target = torch.empty(shape, dtype=source.dtype, device=source.device, memory_format=memory_format)
        if target.numel():
            getattr(_cuda_bridge, direction)(source, target)
        return target
    target, memory = _dlpack.empty(shape, source.dtype, channels_last)
    if memory.size:
        planes = memory.size // (shape[-2] * shape[-1] * inner)
        array = _dlpack.as_array(source, channels_last)
        getattr(cpu, direction)(array, memory, planes, H, W, inner, oH, oW, torch.get_num_threads())
    return target
