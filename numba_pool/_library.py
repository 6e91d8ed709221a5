"""``torch.ops.numba_pool``: the same computation as operators that torch's tracers can see.

Eager calls do not come this way: an operator's dispatch costs more than pooling a small tensor.
"""

import torch
from torch import Tensor

from . import _autograd, _dispatch
from ._validation import check_grad_output, check_input, check_output_size


@torch.library.custom_op("numba_pool::adaptive_avg_pool2d", mutates_args=(), device_types=("cpu", "cuda"))
def adaptive_avg_pool2d(input: Tensor, output_size: list[int]) -> Tensor:
    """Pool `input`, ``(N, C, H, W)`` or ``(C, H, W)``, to `output_size`."""
    check_input(input)
    return _dispatch.forward(input, check_output_size(input, output_size))


@torch.library.custom_op("numba_pool::adaptive_avg_pool2d_backward", mutates_args=(), device_types=("cpu", "cuda"))
def adaptive_avg_pool2d_backward(grad_output: Tensor, input_size: list[int], channels_last: bool) -> Tensor:
    """Spread `grad_output` over an input of height and width `input_size`."""
    check_grad_output(grad_output, input_size)
    return _dispatch.backward(grad_output, tuple(input_size), channels_last and grad_output.dim() == 4)


def _new(like, shape, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


@adaptive_avg_pool2d.register_fake
def _(input, output_size):
    check_input(input)
    sizes = check_output_size(input, output_size)
    return _new(input, (*input.shape[:-2], *sizes), _dispatch.is_channels_last(input))


@adaptive_avg_pool2d_backward.register_fake
def _(grad_output, input_size, channels_last):
    return _new(grad_output, (*grad_output.shape[:-2], *input_size), channels_last and grad_output.dim() == 4)


def _save_forward(ctx, inputs, output):
    input, output_size = inputs
    ctx.input_size = list(input.shape[-2:])
    ctx.channels_last = _dispatch.is_channels_last(input)


def _save_backward(ctx, inputs, output):
    ctx.output_size = list(inputs[0].shape[-2:])


adaptive_avg_pool2d.register_autograd(
    lambda ctx, grad: (adaptive_avg_pool2d_backward(grad, ctx.input_size, ctx.channels_last), None),
    setup_context=_save_forward,
)
adaptive_avg_pool2d_backward.register_autograd(
    lambda ctx, grad: (adaptive_avg_pool2d(grad, ctx.output_size), None, None),
    setup_context=_save_backward,
)


@adaptive_avg_pool2d.register_vmap
def _(info, in_dims, input, output_size):
    return _autograd._batched(adaptive_avg_pool2d, info, in_dims, input, output_size)


@adaptive_avg_pool2d_backward.register_vmap
def _(info, in_dims, grad_output, input_size, channels_last):
    return _autograd._batched(adaptive_avg_pool2d_backward, info, in_dims, grad_output, input_size, channels_last)
