"""Derivatives: pooling and its gradient are each other's derivative.

Pooling is linear.
So its derivative in a direction is pooling again.
Its gradient needs the shape of the input and never its values, and the gradient of the gradient is pooling once more.
"""

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import execute, library
from .checks import check_input
from .memory import is_channels_last
from .torch_private import (
    SingleLevelFunction,
    below_autograd,
    enable_single_level_autograd_function,
    forward_mode_level,
    is_exporting,
    is_watched,
    next_level,
    profiler_enabled,
)

_PLAIN = (Tensor, torch.nn.Parameter)


def _is_plain(tensor):
    """Return whether `tensor` is what it seems, and nothing but autograd looks at what is done with it."""
    return type(tensor) in _PLAIN and not is_dynamo_compiling() and not is_watched(tensor) and not profiler_enabled()


def pool(input: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Pool a tensor; the result carries whatever derivatives torch asks for."""
    if not _is_plain(input):
        check_input(input)
        if is_exporting():  # a program that runs without this package
            return torch.nn.functional.adaptive_avg_pool2d(input, output_size)
        return library.adaptive_avg_pool2d(input, output_size)
    oH, oW = output_size
    if type(oH) is not int or type(oW) is not int:
        output_size = (int(oH), int(oW))  # symbols, which torch keeps for sizes while it traces: a kernel needs numbers
    if (input.requires_grad and torch.is_grad_enabled()) or forward_mode_level() >= 0:
        return _apply(AdaptiveAvgPool2d, execute.forward, input, output_size)
    return execute.forward(input, output_size)


def pool_backward(grad_output: Tensor, input_size: tuple[int, int], channels_last: bool) -> Tensor:
    """Spread the gradient of a pooled tensor over its input, differentiably."""
    if not _is_plain(grad_output):
        return library.adaptive_avg_pool2d_backward(grad_output, input_size, channels_last)
    if (grad_output.requires_grad and torch.is_grad_enabled()) or forward_mode_level() >= 0:
        return _apply(AdaptiveAvgPool2dBackward, execute.backward, grad_output, input_size, channels_last)
    return execute.backward(grad_output, input_size, channels_last)


class _Pool:
    """The derivatives of pooling; `compute` is what pools, below autograd.

    ``forward`` fills `ctx` itself: with a separate ``setup_context``, torch
    binds the arguments by ``inspect`` at each call, which costs more than
    pooling a small tensor does.
    """

    @staticmethod
    def forward(ctx, compute, input, output_size):
        *_, h, w = input.shape
        ctx.input_size, ctx.output_size = (h, w), output_size
        ctx.channels_last = is_channels_last(input)
        return compute(input, output_size)

    @staticmethod
    def backward(ctx, grad_output):
        return None, pool_backward(grad_output, ctx.input_size, ctx.channels_last), None

    @staticmethod
    def jvp(ctx, _compute, input_tangent, _output_size):
        return pool(input_tangent, ctx.output_size)


class _PoolBackward:
    """The derivatives of the gradient of pooling: pooling again."""

    @staticmethod
    def forward(ctx, compute, grad_output, input_size, channels_last):
        *_, h, w = grad_output.shape
        ctx.input_size, ctx.output_size = input_size, (h, w)
        ctx.channels_last = channels_last
        return compute(grad_output, input_size, channels_last)

    @staticmethod
    def backward(ctx, grad_grad_input):
        return None, pool(grad_grad_input, ctx.output_size), None, None

    @staticmethod
    def jvp(ctx, _compute, grad_output_tangent, _input_size, _channels_last):
        return pool_backward(grad_output_tangent, ctx.input_size, ctx.channels_last)


# The Functions of eager mode. Torch calls their nodes AdaptiveAvgPool2dBackward and AdaptiveAvgPool2dBackwardBackward.
class AdaptiveAvgPool2d(_Pool, torch.autograd.Function):
    """Pooling."""


class AdaptiveAvgPool2dBackward(_PoolBackward, torch.autograd.Function):
    """The gradient of pooling."""


def _apply(function, *arguments):
    """Call ``function.apply`` less what it does for functorch's transforms, which do not come this way: 2 us less."""
    return super(torch.autograd.Function, function).apply(*arguments)


# And those of the operator, which hold for one level of autograd: torch.func's transforms nest them.
class _OperatorPool(_Pool, SingleLevelFunction):
    pass


class _OperatorPoolBackward(_PoolBackward, SingleLevelFunction):
    pass


def _differentiable(function, operator):
    """Return the operator's kernel for the dispatch key Autograd."""

    def kernel(keys, *arguments):
        def compute(*arguments):
            with next_level():
                return operator.redispatch(below_autograd(keys), *arguments)

        with enable_single_level_autograd_function():
            return function.apply(compute, *arguments)

    return kernel


for _function, _operator in (
    (_OperatorPool, library.adaptive_avg_pool2d),
    (_OperatorPoolBackward, library.adaptive_avg_pool2d_backward),
):
    library.library.impl(_operator, _differentiable(_function, _operator), "Autograd", with_keyset=True)
