"""From tensors to the kernels of their device and layout."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import _dlpack, _quick
from ._validation import DTYPES, check_grad_output, check_input
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


# Elements for each thread that are copied at once: few enough to stay in the caches until they are read.
PART = 1 << 19

# Elements for each thread that make a sample worth a call of the kernel of its own.
OWN_CALL = 1 << 17


class Parts(NamedTuple):
    """The plan for a CPU tensor that does not lie in one piece: some samples, or channels, after the others.

    Large crops take half to four fifths of the time that they take after a copy of all, and a choice of channels, whose
    samples lie in one piece, a third.
    """

    plan: Callable[[torch.Size], cpu.Plan]  # for a part of such a shape
    channels_last: bool  # how a copy is laid out
    in_one_piece: bool  # each sample, which need not be copied then

    def run(self, source, target, threads):
        """Fill `target` from `source`, on up to `threads` threads."""
        size = source.numel() // len(source)
        count, copy = 1, None
        if not self.in_one_piece or size < threads * OWN_CALL or source.is_neg():
            if size > threads * PART and source.dim() == 4 and not self.channels_last:
                for sample, its_target in zip(source, target, strict=True):
                    self.run(sample, its_target, threads)  # by channels
                return
            count = min(len(source), max(1, threads * PART // size))
            copy = _dlpack.empty((count, *source.shape[1:]), source.dtype, self.channels_last)
        for part, its_target in zip(source.split(count), target.split(count), strict=True):
            if copy is not None:
                part = copy[: len(part)].copy_(part)
            self.plan(part.shape).run(part, its_target, threads)


@dataclass(slots=True, eq=False)
class Call:
    """How a tensor of given sizes, strides, dtype and device is pooled, or a gradient spread: what `run` needs."""

    direction: str
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    channels_last: bool  # how the target is laid out
    shape: tuple[int, ...]  # of the target
    reads_channels_last: bool
    reads_in_place: bool  # or through copies
    plan: cpu.Plan | Parts | None  # on the CPU, where there is something to compute
    times: int = 0  # that it came

    def run(self, source: Tensor) -> Tensor:
        """Return the target for `source`, which must be as planned."""
        if self.source_size == self.target_size:
            return source.clone(memory_format=_memory_format(self.channels_last))
        if self.reads_in_place:
            if source.is_neg():
                source = source.resolve_neg()
        elif not isinstance(self.plan, Parts):
            source = source.contiguous(memory_format=_memory_format(self.reads_channels_last)).resolve_neg()
        if source._is_zerotensor():  # a tangent that torch knows to be zero, and keeps no memory for
            source = source.clone()
        if self.plan is not None:
            target = _dlpack.empty(self.shape, source.dtype, self.channels_last)
            self.plan.run(source, target, torch.get_num_threads())
            return target
        memory_format = _memory_format(self.channels_last)
        target = torch.empty(self.shape, dtype=source.dtype, device=source.device, memory_format=memory_format)
        if target.is_cuda and target.numel():
            from . import _cuda_bridge

            getattr(_cuda_bridge, self.direction)(source, target)
        return target


# Functions that do calls with tiny tensors again, by the target's size and, for a gradient, its memory format.
_again: dict[tuple, partial] = {}


def forward(input: Tensor, output_size: tuple[int, int]) -> tuple[Call, Tensor]:
    """Pool a tensor to `output_size`, ``(oH, oW)``; raise unless it can be pooled."""
    again = _again.get(output_size)
    if again is not None and not input.is_neg() and (answer := again(input)) is not None:
        return answer
    dtype, is_cpu = input.dtype, input.is_cpu
    # What `_plan` is not told, or could not make a source of; it checks the shape, and each only once.
    if input.layout is not torch.strided or dtype not in DTYPES or not (is_cpu or input.is_cuda):
        check_input(input)
    call = _plan("forward", input.shape, input.stride(), dtype, is_cpu, output_size, None)
    return call, _run(call, input, output_size)


def backward(grad_output: Tensor, input_size: tuple[int, int], channels_last: bool) -> tuple[Call, Tensor]:
    """Spread a checked gradient over an input of height and width `input_size`, in the input's memory format."""
    key = input_size, channels_last
    again = _again.get(key)
    if again is not None and not grad_output.is_neg() and (answer := again(grad_output)) is not None:
        return answer
    layout = grad_output.shape, grad_output.stride(), grad_output.dtype, grad_output.is_cpu
    call = _plan("backward", *layout, input_size, channels_last)
    return call, _run(call, grad_output, key)


def _run(call, source, key):
    """Return the target for `source`; a call with tiny tensors that comes twice may come again, and shall be quick."""
    target = call.run(source)
    call.times += 1
    if call.times == 2 and isinstance(call.plan, cpu.Plan) and call.plan.only_call is not None:
        kernel, arguments = call.plan.only_call
        again = _quick.remember(call, kernel, arguments, source, target, _again.get(key))
        if again is not None:
            _again[key] = again
    return target


@lru_cache(maxsize=1024)
def _plan(direction, shape, stride, dtype, is_cpu, target_size, channels_last):
    """Check such a source, and return its call; this takes longer than pooling a tiny tensor does.

    With `channels_last`, or without, the target has that memory format; with None, it has the source's.
    """
    source = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    if direction == "forward":
        check_input(source)
    elif not source.numel():
        check_grad_output(source, target_size)  # an empty batch passes, empty planes do not
    source_size = tuple(shape[-2:])
    as_laid_out = is_channels_last(source)
    if channels_last is None:
        channels_last = as_laid_out
    # A plane of one element is the same memory in both formats: there a gradient can be read as it is laid out.
    reads_channels_last = as_laid_out if target_size == (1, 1) else channels_last
    memory_format = _memory_format(reads_channels_last)
    reads_in_place = source.is_contiguous(memory_format=memory_format)
    target_shape = (*shape[:-2], *target_size)
    plan = None
    if is_cpu and math.prod(target_shape) and source_size != target_size:
        _dlpack.empty(target_shape, dtype, False)  # raises where it cannot be had, before tables as long are made
        sizes = (*source_size, *target_size) if direction == "forward" else (*target_size, *source_size)

        def plan_of(shape):
            planes, inner = shape[:2] if reads_channels_last else (math.prod(shape[:-2]), 1)
            return getattr(cpu, direction)(_dlpack.FLAT_TENSORS[dtype], planes, *sizes, inner)

        if reads_in_place:
            plan = plan_of(shape)
        else:
            in_one_piece = source[:1].is_contiguous(memory_format=memory_format)
            plan = Parts(cache(plan_of), reads_channels_last, in_one_piece)
    return Call(
        direction, source_size, target_size, channels_last, target_shape, reads_channels_last, reads_in_place, plan
    )


def _memory_format(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format
