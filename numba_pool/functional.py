"""The function: check, then apply."""

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_unary

from .op.autograd import pool
from .op.checks import check_output_size
from .op.torch_private import is_tracing


def adaptive_avg_pool2d(input: Tensor, output_size) -> Tensor:
    r"""Average-pool a feature map of any height and width to a given height and width.

    Output element :math:`(o_h, o_w)` of every plane is the mean of a window of the input:

    .. math::

        \left\lfloor \frac{o_h H}{oH} \right\rfloor \le i_h < \left\lceil \frac{(o_h + 1) H}{oH} \right\rceil, \qquad
        \left\lfloor \frac{o_w W}{oW} \right\rfloor \le i_w < \left\lceil \frac{(o_w + 1) W}{oW} \right\rceil

    The results equal those of :func:`torch.nn.functional.adaptive_avg_pool2d` within rounding.
    They do not depend on the number of threads or on what else is in the batch, bit for bit.
    float16 and bfloat16 are summed in float32, in the gradient too.

    Parameters
    ----------
    input : torch.Tensor
        Shape ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, float16 or bfloat16; on a CPU or a CUDA device.
        H and W are at least 1; N and C may be 0.
        Contiguous and channels_last tensors are read in place.
        Any other is copied first: on a CPU part by part, on a CUDA device as a whole.
    output_size : int or tuple of (int or None, int or None)
        ``(oH, oW)``, in elements; one int stands for a square, and None for the input's own size.
        It may be larger than the input, or 0.

    Returns
    -------
    torch.Tensor
        Shape ``(N, C, oH, oW)`` or ``(C, oH, oW)``, with the dtype, the device and the memory format of `input`.

    Raises
    ------
    TypeError
        If `input` is not a tensor, or `output_size` is not made of ints.
    RuntimeError
        If `input` does not have 3 or 4 dimensions, or has an H or W of 0; if `output_size` is negative, or does not
        have two elements.
    ValueError
        If `output_size` is a tuple and `input` has fewer than 3 dimensions.
    NotImplementedError
        If the dtype, the layout or the device of `input` is not supported.

    See Also
    --------
    AdaptiveAvgPool2d : the same as a module.
    pooling_windows : where each window starts and ends.

    Notes
    -----
    Derivatives of any order, forward-mode AD, ``torch.func``'s transforms and ``torch.compile`` are supported.
    ``torch.export`` and ONNX see torch's native operator, so an exported program does not need Numba.
    An ONNX program with a dynamic height or width is right for the sizes of the example, and may be silently wrong for
    others, except for an output of 1x1: torch's exporter decomposes either operator that way.
    The first call for each dtype compiles a kernel; see `precompile`.

    The windows are those of ATen, ``aten/src/ATen/native/AdaptivePooling.h``.

    Examples
    --------
    >>> import torch
    >>> from numba_pool import adaptive_avg_pool2d
    >>> adaptive_avg_pool2d(torch.arange(16.0).reshape(1, 4, 4), 2)
    tensor([[[ 2.5000,  4.5000],
             [10.5000, 12.5000]]])
    >>> adaptive_avg_pool2d(torch.randn(2, 64, 10, 20), (1, 7)).shape
    torch.Size([2, 64, 1, 7])
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool2d, (input,), input, output_size)
    if not is_dynamo_compiling() and is_tracing():
        return torch.nn.functional.adaptive_avg_pool2d(input, output_size)
    return pool(input, check_output_size(input, output_size))
