"""``torch.ops.numba_pool``: the same computation as operators, for all of torch that looks at operators.

Tracers, ``torch.func``'s transforms, fake tensors, subclasses and profilers want an operator.
It has a shape rule, a batching rule, and derivatives, which `autograd` gives it.
Eager calls on plain tensors do not come this way: an operator's dispatch costs more than pooling a small tensor.
"""

import torch
from torch import Tensor

from . import execute
from .checks import check_grad_output, check_input, check_output_size
from .memory import is_channels_last, memory_format

# Sizes are symbolic in the schema: a compiled program may learn them only when it runs.
library = torch.library.Library("numba_pool", "DEF")
for _schema in (
    "adaptive_avg_pool2d(Tensor input, SymInt[2] output_size) -> Tensor",
    "adaptive_avg_pool2d_backward(Tensor grad_output, SymInt[2] input_size, bool channels_last) -> Tensor",
):
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

adaptive_avg_pool2d = torch.ops.numba_pool.adaptive_avg_pool2d.default
adaptive_avg_pool2d_backward = torch.ops.numba_pool.adaptive_avg_pool2d_backward.default

# Negative bits are resolved below; torch would copy the tensor for that without a look whether it has memory.
for _operator in (adaptive_avg_pool2d, adaptive_avg_pool2d_backward):
    library.impl(_operator, torch.library.fallthrough_kernel, "Negative")


@torch.library.impl("numba_pool::adaptive_avg_pool2d", ("CPU", "CUDA"), lib=library)
def _forward(input: Tensor, output_size) -> Tensor:
    return execute.forward(input, check_output_size(input, output_size))


@torch.library.impl("numba_pool::adaptive_avg_pool2d_backward", ("CPU", "CUDA"), lib=library)
def _backward(grad_output: Tensor, input_size, channels_last: bool) -> Tensor:
    check_grad_output(grad_output, input_size)
    return execute.backward(grad_output, tuple(input_size), channels_last and grad_output.dim() == 4)


def _new(like, shape, channels_last):
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(channels_last))


@torch.library.register_fake("numba_pool::adaptive_avg_pool2d", lib=library)
def _forward_fake(input, output_size):
    sizes = check_output_size(input, output_size)
    check_input(input)
    return _new(input, (*input.shape[:-2], *sizes), is_channels_last(input))


@torch.library.register_fake("numba_pool::adaptive_avg_pool2d_backward", lib=library)
def _backward_fake(grad_output, input_size, channels_last):
    check_grad_output(grad_output, input_size)
    return _new(grad_output, (*grad_output.shape[:-2], *input_size), channels_last and grad_output.dim() == 4)


def _batched(operator, in_dims, tensor, *arguments):
    """Apply an operator to a batch of tensors at once: the new batch joins the old one, since planes do not mix."""
    tensor = tensor.movedim(in_dims[0], 0)
    result = operator(tensor.flatten(0, -4), *arguments)
    return result.unflatten(0, tensor.shape[:-3]), 0


@torch.library.register_vmap("numba_pool::adaptive_avg_pool2d", lib=library)
def _forward_vmap(info, in_dims, *arguments):
    return _batched(adaptive_avg_pool2d, in_dims, *arguments)


@torch.library.register_vmap("numba_pool::adaptive_avg_pool2d_backward", lib=library)
def _backward_vmap(info, in_dims, *arguments):
    return _batched(adaptive_avg_pool2d_backward, in_dims, *arguments)
