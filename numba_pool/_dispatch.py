"""From checked tensors to the kernels of their device and layout."""

import math
from functools import lru_cache
from typing import NamedTuple

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


class _Call(NamedTuple):
    """What follows from sizes and strides alone."""

    channels_last: bool  # how the source is read
    in_place: bool  # or through a copy
    planes: int
    inner: int  # elements of a pixel in memory
    shape: tuple[int, ...]  # of the result
    result_channels_last: bool


@lru_cache(maxsize=1024)
def _prepare(shape, stride, size, channels_last) -> _Call:
    """Return the `_Call` for a source of these sizes and strides; finding it takes longer than a tiny tensor does.

    With `channels_last`, or without, the result has that memory format; with None, it has the source's.
    """
    source = torch.empty_strided(shape, stride, device="meta")
    as_laid_out = is_channels_last(source)
    result_channels_last = as_laid_out if channels_last is None else channels_last
    # A plane of one element is the same memory in both formats: there a gradient can be read as it is laid out.
    read_channels_last = as_laid_out if size == (1, 1) else result_channels_last
    in_place = source.is_contiguous(memory_format=_memory_format(read_channels_last))
    planes, inner = shape[:2] if read_channels_last else (math.prod(shape[:-2]), 1)
    return _Call(read_channels_last, in_place, planes, inner, (*shape[:-2], *size), result_channels_last)


def forward(input: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Pool a checked tensor to `output_size`, ``(oH, oW)``."""
    return _launch("forward", input, output_size, _prepare(input.shape, input.stride(), output_size, None))


def backward(grad_output: Tensor, input_size: tuple[int, int], channels_last: bool) -> Tensor:
    """Spread a checked gradient over an input of height and width `input_size`, in the input's memory format."""
    if not grad_output.numel():
        check_grad_output(grad_output, input_size)  # an empty batch passes, empty planes do not
    call = _prepare(grad_output.shape, grad_output.stride(), input_size, channels_last)
    return _launch("backward", grad_output, input_size, call)


def _launch(direction, source, size, call):
    """Return the result of one direction, of height and width `size`."""
    H, W = source.shape[-2:]
    if size == (H, W):
        return source.clone(memory_format=_memory_format(call.result_channels_last))
    if not call.in_place:
        source = source.contiguous(memory_format=_memory_format(call.channels_last))
    if source.is_neg():
        source = source.resolve_neg()
    if source.is_cuda:
        from . import _cuda_bridge

        memory_format = _memory_format(call.result_channels_last)
        target = torch.empty(call.shape, dtype=source.dtype, device=source.device, memory_format=memory_format)
        if target.numel():
            (_cuda_bridge.forward if direction == "forward" else _cuda_bridge.backward)(source, target)
        return target
    target, memory = _dlpack.empty(call.shape, source.dtype, call.result_channels_last)
    if memory.size:
        array = _dlpack.as_array(source, call.channels_last)
        (h, w), threads = size, torch.get_num_threads()
        if direction == "forward":
            cpu.forward(array, memory, call.planes, H, W, call.inner, h, w, threads)
        else:
            cpu.backward(array, memory, call.planes, h, w, call.inner, H, W, threads)
    return target


def _memory_format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format
