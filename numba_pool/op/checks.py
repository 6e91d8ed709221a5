"""Every check of an argument, and every error message.

Exceptions have the types that torch's own op raises for the same mistake (in torch 2.13; versions differ); where its
message is clear, it is kept.
The checks do not depend on the output size, as the native op's do.
"""

import operator

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# The names that ATen's messages call dtypes by.
_DTYPE_NAMES = {
    torch.bool: "Bool",
    torch.uint8: "Byte",
    torch.int8: "Char",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.complex32: "ComplexHalf",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
}
_INT64_MAX = 2**63 - 1


def check_input(input: Tensor) -> None:
    """Raise unless a tensor can be pooled."""
    shape = input.shape
    if len(shape) not in (3, 4):
        raise RuntimeError(f"adaptive_avg_pool2d(): Expected 3D or 4D tensor, but got {list(shape)}")
    check_kind("adaptive_avg_pool2d", input)
    if not shape[-1] or not shape[-2]:
        _check_not_empty("adaptive_avg_pool2d", "input", input)


def raise_no_memory(tensor: Tensor) -> None:
    """Raise, for a tensor that has elements and no memory, as torch's own op does."""
    raise RuntimeError(
        f"adaptive_avg_pool2d: expected a tensor with memory, but that of this one, of shape {list(tensor.shape)}, was "
        "released; was its storage resized?"
    )


def check_kind(name, tensor):
    """Raise unless a tensor has a layout, a dtype and a device that the kernels work with."""
    if tensor.layout is not torch.strided:
        raise NotImplementedError(
            f'"{name}" not implemented for the layout {tensor.layout}: expected a dense tensor; use .to_dense()'
        )
    if tensor.dtype not in DTYPES:
        raise NotImplementedError(
            f"\"{name}\" not implemented for '{_DTYPE_NAMES.get(tensor.dtype, tensor.dtype)}': "
            "expected float32, float64, float16 or bfloat16; convert with .to(dtype)"
        )
    if not (tensor.is_cpu or tensor.is_cuda or tensor.is_meta):
        raise NotImplementedError(
            f'"{name}" not implemented for the device type {tensor.device.type!r}: expected a CPU or CUDA tensor; '
            "use torch.nn.functional.adaptive_avg_pool2d there, or move the tensor with .to('cpu')"
        )


def _check_not_empty(name, argument, tensor):
    # Only height and width: no batch and no channels give an empty result.
    shape = tensor.shape
    for axis in (-2, -1):
        if shape[axis] == 0:
            raise RuntimeError(
                f"{name}(): Expected {argument} to have non-zero size for non-batch dimensions, "
                f"but {argument} has sizes {list(tensor.shape)} with dimension {tensor.dim() + axis} being empty"
            )


def check_output_size(input: Tensor, output_size) -> tuple[int, int]:
    """Return `output_size` as two ints, with None replaced by the input's size."""
    if not isinstance(input, Tensor):
        raise TypeError(
            f"adaptive_avg_pool2d(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}"
        )
    # First the common cases, at little cost.
    is_pair = type(output_size) is tuple and len(output_size) == 2 and input.dim() > 2
    oH, oW = pair = output_size if is_pair else (output_size, output_size)
    if type(oH) is type(oW) is int and 0 <= oH <= _INT64_MAX and 0 <= oW <= _INT64_MAX:
        return pair
    if isinstance(output_size, (int, torch.SymInt)) and not isinstance(output_size, bool):
        sizes = (output_size, output_size)
    else:
        sizes = _pair(input, output_size)
    for size in sizes:
        if size < 0:
            raise RuntimeError(
                "adaptive_avg_pool2d: elements of output_size must be greater than or equal to 0 "
                f"but received {{{sizes[0]}, {sizes[1]}}}"
            )
        if size > _INT64_MAX:
            raise ValueError(f"adaptive_avg_pool2d: elements of output_size must fit 64 bits, but received {size}")
    return sizes  # type: ignore[return-value]  # a SymInt stands for an int


def _pair(input, output_size):
    wrong = "adaptive_avg_pool2d(): argument 'output_size' (position 2) must be an int or a tuple of ints"
    if isinstance(output_size, (bool, float, complex, str, bytes)) or output_size is None:
        raise TypeError(f"{wrong}, not {type(output_size).__name__}")
    if not isinstance(output_size, (tuple, list)):
        try:
            size = _index(output_size)
            return (size, size)
        except TypeError:
            pass
    try:
        sizes = list(output_size)
    except TypeError:
        raise TypeError(f"{wrong}, not {type(output_size).__name__}") from None
    if len(sizes) != 2:
        # Of torch's two exceptions for this, the type of that which it raises for as many sizes.
        error = ValueError if input.dim() <= len(sizes) else RuntimeError
        raise error(f"adaptive_avg_pool2d: output_size must be 2 ints or Nones, but got {len(sizes)} elements")
    if input.dim() < 3:
        raise ValueError(f"Input dimension should be at least 3, but got {input.dim()}")
    for position, size in enumerate(sizes):
        if size is None:
            sizes[position] = input.shape[position - 2]
        elif not isinstance(size, torch.SymInt):
            try:
                sizes[position] = _index(size)
            except TypeError:
                raise TypeError(f"{wrong}, but found element of type {type(size).__name__} at pos {position}") from None
    return tuple(sizes)


def _index(size):
    """Return an integer of any library as an int; a bool is none, whoever made it."""
    # NumPy 1 made an index of its bools.
    if isinstance(size, bool) or str(getattr(size, "dtype", "")) in ("bool", "torch.bool"):
        raise TypeError
    return operator.index(size)


def check_grad_output(grad_output: Tensor, input_size) -> None:
    """Raise unless `grad_output` can be the gradient of pooling an input of height and width `input_size`."""
    name = "adaptive_avg_pool2d_backward"
    if grad_output.dim() not in (3, 4):
        raise RuntimeError(f"{name}(): Expected 3D or 4D grad_output, but got {list(grad_output.shape)}")
    check_kind(name, grad_output)
    _check_not_empty(name, "grad_output", grad_output)
    if len(input_size) != 2 or any(size < 1 for size in input_size):  # one by one: min() would compare two symbols
        raise RuntimeError(f"{name}(): Expected input_size to be two positive ints, but got {list(input_size)}")
