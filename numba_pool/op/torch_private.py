"""Names of torch that it does not document: what each is for, and what happens where a version of torch lacks it."""

from contextlib import contextmanager

import torch
from torch.autograd import forward_ad

try:
    from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack
    from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
except ImportError:
    # Without them, every call goes through the operator: as right, and some 20 us slower.
    def is_watched(tensor) -> bool:
        """Return whether transforms or tracers of torch look at operations on `tensor`."""
        return True
else:

    def is_watched(tensor) -> bool:
        """Return whether transforms or tracers of torch look at operations on `tensor`."""
        return (
            _len_torch_dispatch_stack() > 0
            or _are_functorch_transforms_active()
            or is_legacy_batchedtensor(tensor)  # of autograd.grad(..., is_grads_batched=True)
            or is_functorch_wrapped_tensor(tensor)  # one that outlived its transform
        )


try:
    from torch._C import _is_tracing as is_tracing
except ImportError:
    is_tracing = torch.jit.is_tracing  # the same, and slower

try:
    from torch.autograd import _profiler_enabled as profiler_enabled
except ImportError:

    def profiler_enabled() -> bool:
        """Return whether a profiler records; without torch's answer, plain calls leave no events of their own."""
        return False


if hasattr(torch.compiler, "_is_exporting_flag"):

    def is_exporting() -> bool:
        """Return whether torch.export makes a program.

        While torch.compile traces, torch 2.8 to 2.11 hold the documented function to be true.
        """
        return torch.compiler._is_exporting_flag
else:
    is_exporting = torch.compiler.is_exporting


def forward_mode_level() -> int:
    """Return the level of forward-mode AD that is entered, or -1; without torch's answer, as if one always were."""
    return getattr(forward_ad, "_current_level", 0)


def is_zero_tensor(tensor) -> bool:
    """Return whether torch knows a tangent to be zero, and keeps no memory for it."""
    return tensor._is_zerotensor()


# What follows gives the operator derivatives of all kinds. `torch.library.register_autograd` would be the documented
# way, but what it makes has no forward mode, and drops tangents without a word. Without these names the package cannot
# be imported; the oldest and the newest version of torch that are supported have them.
from torch._functorch.autograd_function import enable_single_level_autograd_function  # noqa: E402
from torch.autograd.function import _SingleLevelFunction as SingleLevelFunction  # noqa: E402

__all__ = [
    "SingleLevelFunction",
    "below_autograd",
    "enable_single_level_autograd_function",
    "forward_mode_level",
    "is_exporting",
    "is_tracing",
    "is_watched",
    "is_zero_tensor",
    "next_level",
    "profiler_enabled",
]


def below_autograd(keys):
    """Return the dispatch keys that are left below this level of autograd."""
    return keys & torch._C._after_autograd_keyset


@contextmanager
def next_level():
    """Leave this level of autograd; the levels around it go on, though a Function's forward turns them off too."""
    with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield
