"""The autograd Functions: pooling and its gradient, each the other's derivative.

Pooling is linear.
So its derivative in a direction is pooling again, its gradient needs the shape of the input and never its values, and the
gradient of the gradient is pooling once more.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _dispatch


def pool(input: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Pool a checked tensor; the result carries whatever derivatives torch asks for."""
    if torch._C._are_functorch_transforms_active():
        return _PoolInTransform.apply(input, output_size)
    if (input.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return _Pool.apply(input, output_size)
    return _dispatch.forward(input, output_size)


def pool_backward(grad_output: Tensor, input_size: tuple[int, int], channels_last: bool) -> Tensor:
    """Spread the gradient of a pooled tensor over its input, differentiably."""
    if torch._C._are_functorch_transforms_active():
        return _PoolBackwardInTransform.apply(grad_output, input_size, channels_last)
    if (grad_output.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return _PoolBackward.apply(grad_output, input_size, channels_last)
    return _dispatch.backward(grad_output, input_size, channels_last)


class _Pool(torch.autograd.Function):
    """Pooling in eager mode.

    ``forward`` fills `ctx` itself: with a separate ``setup_context``, torch binds the arguments by ``inspect`` at every call,
    which costs more than pooling a small tensor does.
    """

    @staticmethod
    def forward(ctx, input, output_size):
        _Pool._save(ctx, input, output_size)
        return _dispatch.forward(input, output_size)

    @staticmethod
    def _save(ctx, input, output_size):
        ctx.input_size = tuple(input.shape[-2:])
        ctx.output_size = output_size
        ctx.channels_last = _dispatch.is_channels_last(input)

    @staticmethod
    def backward(ctx, grad_output):
        return pool_backward(grad_output, ctx.input_size, ctx.channels_last), None

    @staticmethod
    def jvp(ctx, input_tangent, _):
        return pool(input_tangent, ctx.output_size)


class _PoolBackward(torch.autograd.Function):
    """The gradient of pooling, in eager mode."""

    @staticmethod
    def forward(ctx, grad_output, input_size, channels_last):
        _PoolBackward._save(ctx, grad_output, input_size, channels_last)
        return _dispatch.backward(grad_output, input_size, channels_last)

    @staticmethod
    def _save(ctx, grad_output, input_size, channels_last):
        ctx.input_size = input_size
        ctx.output_size = tuple(grad_output.shape[-2:])
        ctx.channels_last = channels_last

    @staticmethod
    def backward(ctx, grad_grad_input):
        return pool(grad_grad_input, ctx.output_size), None, None

    @staticmethod
    def jvp(ctx, grad_output_tangent, _input_size, _channels_last):
        return pool_backward(grad_output_tangent, ctx.input_size, ctx.channels_last)


class _PoolInTransform(_Pool):
    """Pooling under ``torch.func``'s transforms, which need the context apart and a rule for vmap."""

    @staticmethod
    def forward(input, output_size):
        return _dispatch.forward(input, output_size)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Pool._save(ctx, *inputs)

    @staticmethod
    def vmap(info, in_dims, input, output_size):
        return _batched(pool, info, in_dims, input, output_size)


class _PoolBackwardInTransform(_PoolBackward):
    """The gradient of pooling under ``torch.func``'s transforms."""

    @staticmethod
    def forward(grad_output, input_size, channels_last):
        return _dispatch.backward(grad_output, input_size, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _PoolBackward._save(ctx, *inputs)

    @staticmethod
    def vmap(info, in_dims, grad_output, input_size, channels_last):
        return _batched(pool_backward, info, in_dims, grad_output, input_size, channels_last)


def _batched(function, info, in_dims, tensor, *arguments):
    """Apply a function to a batch of tensors at once: the new batch joins the old one, since planes do not mix."""
    tensor = tensor.movedim(in_dims[0], 0)
    result = function(tensor.reshape(-1, *tensor.shape[-3:]), *arguments)
    return result.reshape(*tensor.shape[:-2], *result.shape[-2:]), 0
