"""The layer, and two ways to have it in models that were written with torch's own."""

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .functional import adaptive_avg_pool2d


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """Average-pool a feature map of any height and width to a given height and width.

    The module form of `adaptive_avg_pool2d`, whose documentation says everything.
    It is a subclass of :class:`torch.nn.AdaptiveAvgPool2d` without parameters or state, so ``isinstance`` checks and
    checkpoints go on working.

    Parameters
    ----------
    output_size : int or tuple of (int or None, int or None)
        ``(oH, oW)``, in elements; one int stands for a square, and None for the input's own size.

    See Also
    --------
    convert_adaptive_avg_pool2d : swaps the layers of an existing model.

    Examples
    --------
    >>> import torch
    >>> from numba_pool import AdaptiveAvgPool2d
    >>> AdaptiveAvgPool2d((5, 7))(torch.randn(1, 64, 8, 9)).shape
    torch.Size([1, 64, 5, 7])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Pool `input`, ``(N, C, H, W)`` or ``(C, H, W)``; see `adaptive_avg_pool2d`."""
        if torch.jit.is_scripting():
            return nn.functional.adaptive_avg_pool2d(input, self.output_size)
        return adaptive_avg_pool2d(input, self.output_size)


def convert_adaptive_avg_pool2d(module: nn.Module) -> nn.Module:
    """Swap every :class:`torch.nn.AdaptiveAvgPool2d` inside a model for `AdaptiveAvgPool2d`, in place.

    Parameters
    ----------
    module : torch.nn.Module
        A model, or a bare layer.

    Returns
    -------
    torch.nn.Module
        `module` itself.
        Its layers stay the same objects, shared where they were shared, with their hooks; only their class changes.
        Subclasses of torch's layer may behave in their own way and are left alone.

    Raises
    ------
    TypeError
        If `module` is not a module.

    Examples
    --------
    >>> import torch
    >>> from numba_pool import convert_adaptive_avg_pool2d
    >>> convert_adaptive_avg_pool2d(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)))
    Sequential(
      (0): ReLU()
      (1): AdaptiveAvgPool2d(output_size=1)
    )
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"convert_adaptive_avg_pool2d(): expected a torch.nn.Module, not {type(module).__name__}")
    for layer in module.modules():
        if type(layer) is nn.AdaptiveAvgPool2d:
            # The object stays the same, so whoever shares it, and its hooks, need not know.
            layer.__class__ = AdaptiveAvgPool2d
    return module


class override_adaptive_avg_pool2d(TorchFunctionMode):
    """Within this context, :func:`torch.nn.functional.adaptive_avg_pool2d` is `adaptive_avg_pool2d`.

    For models that call the function, or that cannot be edited.
    Torch's layer calls the function, so it is reached too.
    Nothing is changed globally: other threads, and code outside the context, are not affected.

    See Also
    --------
    convert_adaptive_avg_pool2d : swaps the layers of a model for good.

    Notes
    -----
    Torch's mechanism for this is :class:`torch.overrides.TorchFunctionMode`: within the context, every call of a torch
    function from Python costs a few microseconds more.
    With ``torch.compile``, call the compiled model within the context.

    Examples
    --------
    >>> import torch
    >>> from numba_pool import override_adaptive_avg_pool2d
    >>> with override_adaptive_avg_pool2d():
    ...     torch.nn.functional.adaptive_avg_pool2d(torch.arange(16.0).reshape(1, 4, 4), 2)
    tensor([[[ 2.5000,  4.5000],
             [10.5000, 12.5000]]])
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call numba_pool's function in place of torch's, and all others as they are."""
        if func is nn.functional.adaptive_avg_pool2d:
            func = adaptive_avg_pool2d
        return func(*args, **(kwargs or {}))
