"""``torch.ops.numba_pool``: the same computation as operators, for all of torch that looks at operators.

Tracers, ``torch.func``'s transforms, fake tensors and subclasses have no memory that a kernel could fill.
But they know what to do with an operator that has a shape rule, a batching rule and derivatives.
Eager calls on plain tensors do not come this way: an operator's dispatch costs more than pooling a small tensor.
"""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import _dispatch
from ._validation import check_grad_output, check_input, check_output_size

# Sizes are symbolic in the schema: a compiled program may learn them only when it runs.
_library = torch.library.Library("numba_pool", "DEF")
for _schema in (
    "adaptive_avg_pool2d(Tensor input, SymInt[2] output_size) -> Tensor",
    "adaptive_avg_pool2d_backward(Tensor grad_output, SymInt[2] input_size, bool channels_last) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

adaptive_avg_pool2d = torch.ops.numba_pool.adaptive_avg_pool2d.default
adaptive_avg_pool2d_backward = torch.ops.numba_pool.adaptive_avg_pool2d_backward.default


@torch.library.impl("numba_pool::adaptive_avg_pool2d", ("CPU", "CUDA"), lib=_library)
def _forward(input: Tensor, output_size) -> Tensor:
    return _dispatch.forward(input, check_output_size(input, output_size))[1]


@torch.library.impl("numba_pool::adaptive_avg_pool2d_backward", ("CPU", "CUDA"), lib=_library)
def _backward(grad_output: Tensor, input_size, channels_last: bool) -> Tensor:
    check_grad_output(grad_output, input_size)
    return _dispatch.backward(grad_output, tuple(input_size), channels_last and grad_output.dim() == 4)[1]


def _new(like, shape, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("numba_pool::adaptive_avg_pool2d", lib=_library)
def _forward_fake(input, output_size):
    sizes = check_output_size(input, output_size)
    check_input(input)
    return _new(input, (*input.shape[:-2], *sizes), _dispatch.is_channels_last(input))


@torch.library.register_fake("numba_pool::adaptive_avg_pool2d_backward", lib=_library)
def _backward_fake(grad_output, input_size, channels_last):
    check_grad_output(grad_output, input_size)
    return _new(grad_output, (*grad_output.shape[:-2], *input_size), channels_last and grad_output.dim() == 4)


@contextmanager
def _next_level():
    """Leave this level of autograd; the levels around it go on, though a Function's forward turns them off too."""
    with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


# Not torch.library.register_autograd: what it makes has no forward mode, and drops tangents without a word.
class _Pool(_SingleLevelFunction):
    """The operator's derivatives; `keys` are what is left of its dispatch, below autograd."""

    @staticmethod
    def forward(ctx, keys, input, output_size):
        with _next_level():
            output = adaptive_avg_pool2d.redispatch(keys, input, output_size)
        ctx.input_size = input.shape[-2:]
        ctx.output_size = output_size
        ctx.channels_last = _dispatch.is_channels_last(input)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        return None, adaptive_avg_pool2d_backward(grad_output, ctx.input_size, ctx.channels_last), None

    @staticmethod
    def jvp(ctx, _keys, input_tangent, _output_size):
        return adaptive_avg_pool2d(input_tangent, ctx.output_size)


class _PoolBackward(_SingleLevelFunction):
    """The derivatives of the gradient: pooling again."""

    @staticmethod
    def forward(ctx, keys, grad_output, input_size, channels_last):
        with _next_level():
            grad_input = adaptive_avg_pool2d_backward.redispatch(keys, grad_output, input_size, channels_last)
        ctx.input_size = input_size
        ctx.output_size = grad_output.shape[-2:]
        ctx.channels_last = channels_last
        return grad_input

    @staticmethod
    def backward(ctx, grad_grad_input):
        return None, adaptive_avg_pool2d(grad_grad_input, ctx.output_size), None, None

    @staticmethod
    def jvp(ctx, _keys, grad_output_tangent, _input_size, _channels_last):
        return adaptive_avg_pool2d_backward(grad_output_tangent, ctx.input_size, ctx.channels_last)


def _forward_autograd(keys, input, output_size):
    with enable_single_level_autograd_function():
        after = keys & torch._C._after_autograd_keyset
        return _Pool.apply(after, input, output_size)  # type: ignore[attr-defined]


def _backward_autograd(keys, grad_output, input_size, channels_last):
    with enable_single_level_autograd_function():
        after = keys & torch._C._after_autograd_keyset
        return _PoolBackward.apply(after, grad_output, input_size, channels_last)  # type: ignore[attr-defined]


_library.impl("adaptive_avg_pool2d", _forward_autograd, "Autograd", with_keyset=True)
_library.impl("adaptive_avg_pool2d_backward", _backward_autograd, "Autograd", with_keyset=True)


def _batched(operator, in_dims, tensor, *arguments):
    """Apply an operator to a batch of tensors at once: the new batch joins the old one, since planes do not mix."""
    tensor = tensor.movedim(in_dims[0], 0)
    result = operator(tensor.flatten(0, -4), *arguments)
    return result.unflatten(0, tensor.shape[:-3]), 0


@torch.library.register_vmap("numba_pool::adaptive_avg_pool2d", lib=_library)
def _forward_vmap(info, in_dims, *arguments):
    return _batched(adaptive_avg_pool2d, in_dims, *arguments)


@torch.library.register_vmap("numba_pool::adaptive_avg_pool2d_backward", lib=_library)
def _backward_vmap(info, in_dims, *arguments):
    return _batched(adaptive_avg_pool2d_backward, in_dims, *arguments)
