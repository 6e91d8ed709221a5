"""The autograd Functions of eager mode: pooling and its gradient, each the other's derivative.

Pooling is linear.
So its derivative in a direction is pooling again.
Its gradient needs the shape of the input and never its values, and the gradient of the gradient is pooling once more.
"""

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from . import _dispatch, _library
from ._validation import check_input

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)
_PLAIN = (Tensor, torch.nn.Parameter)


def _is_plain(tensor):
    """Say whether `tensor` is what it seems: it is no fake, no subclass, and no transform or tracer looks on."""
    return (
        type(tensor) in _PLAIN
        and not is_dynamo_compiling()
        and not _len_torch_dispatch_stack()
        and not _are_functorch_transforms_active()
        and not is_legacy_batchedtensor(tensor)  # of autograd.grad(..., is_grads_batched=True)
        and not is_functorch_wrapped_tensor(tensor)  # one that outlived its transform
    )


def pool(input: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Pool a tensor; the result carries whatever derivatives torch asks for."""
    if not _is_plain(input):
        check_input(input)
        if torch.compiler.is_compiling() and _is_exporting():  # a program that shall run without this package
            return torch.nn.functional.adaptive_avg_pool2d(input, output_size)
        return _library.adaptive_avg_pool2d(input, output_size)
    oH, oW = output_size
    if type(oH) is not int or type(oW) is not int:
        output_size = (int(oH), int(oW))  # symbols, which torch keeps for sizes while it traces: a kernel needs numbers
    if (input.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return _apply_pool(input, output_size)
    return _dispatch.forward(input, output_size)[1]


def pool_backward(grad_output: Tensor, input_size: tuple[int, int], channels_last: bool) -> Tensor:
    """Spread the gradient of a pooled tensor over its input, differentiably."""
    if not _is_plain(grad_output):
        return _library.adaptive_avg_pool2d_backward(grad_output, input_size, channels_last)
    if (grad_output.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return _apply_pool_backward(grad_output, input_size, channels_last)
    return _dispatch.backward(grad_output, input_size, channels_last)[1]


class _Pool(torch.autograd.Function):
    """Pooling.

    ``forward`` fills `ctx` itself: with a separate ``setup_context``, torch binds the arguments by ``inspect`` at each
    call, which costs more than pooling a small tensor does.
    """

    @staticmethod
    def forward(ctx, input, output_size):
        ctx.call, output = _dispatch.forward(input, output_size)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        call = ctx.call
        return pool_backward(grad_output, call.source_size, call.channels_last), None

    @staticmethod
    def jvp(ctx, input_tangent, _output_size):
        return pool(input_tangent, ctx.call.target_size)


class _PoolBackward(torch.autograd.Function):
    """The gradient of pooling."""

    @staticmethod
    def forward(ctx, grad_output, input_size, channels_last):
        ctx.call, grad_input = _dispatch.backward(grad_output, input_size, channels_last)
        return grad_input

    @staticmethod
    def backward(ctx, grad_grad_input):
        return pool(grad_grad_input, ctx.call.source_size), None, None

    @staticmethod
    def jvp(ctx, grad_output_tangent, _input_size, _channels_last):
        call = ctx.call
        return pool_backward(grad_output_tangent, call.target_size, call.channels_last)


# ``apply`` less what it does for functorch's transforms, which do not come this way.
_apply_pool = super(torch.autograd.Function, _Pool).apply
_apply_pool_backward = super(torch.autograd.Function, _PoolBackward).apply

# A node of the graph calls `backward` itself, less what looks at each call for what the class calls it: 0.7 us.
_Pool._backward_cls.apply = _Pool.backward  # type: ignore[attr-defined]
