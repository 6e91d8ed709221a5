"""Who is timed: functions of the same signature, ``pool(input, output_size)``."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import numba_pool

from .cases import ALL_DTYPES

MODES = ("forward", "backward", "full")


def native(input, output_size):
    """Pool with torch's own op."""
    return torch.nn.functional.adaptive_avg_pool2d(input, output_size)


def compiled():
    """Return the native op under ``torch.compile``, with nothing left of what earlier cases compiled."""
    torch.compiler.reset()
    return torch.compile(native, dynamic=False)


@dataclass(frozen=True)
class Provider:
    """One implementation of the layer.

    Parameters
    ----------
    name : str
        What records call it.
    make : callable
        Returns the function to time; it is called anew for every case, layout and dtype.
    chained : bool
        Whether sums may be one long chain in the tensor's own type, as the native op's backward is:
        its check then allows an error that grows with the number of terms.
    modes, dtypes : tuple of str
        What is timed.
    """

    name: str
    make: Callable[[], Callable]
    chained: bool = False
    modes: tuple[str, ...] = MODES
    dtypes: tuple[str, ...] = ALL_DTYPES


BASELINE, OURS, LIMIT = "native", "numba_pool", "limit"

PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(BASELINE, lambda: native, chained=True),
        # The gradient under torch.compile calls the native op again, so only the forward is a provider of its own;
        # and only in float32, because every case takes the compiler a second or more.
        Provider("torch.compile", compiled, chained=True, modes=("forward",), dtypes=("float32",)),
        Provider(OURS, lambda: numba_pool.adaptive_avg_pool2d),
    )
}


def make_input(case, dtype, layout, device, generator):
    """Return normal random numbers of the case's shape, in memory order `layout`.

    ``"strided"`` is a crop out of an NCHW tensor two rows and two columns larger.
    """
    N, C, H, W = case.input_size
    border = 2 if layout == "strided" else 0
    values = torch.randn((N, C, H + border, W + border), generator=generator).to(device, dtype)
    return values[:, :, 1:-1, 1:-1] if border else values.contiguous(memory_format=memory_format(layout))


def memory_format(layout):
    """Return torch's name for a layout; a strided input has a contiguous output."""
    return torch.channels_last if layout == "NHWC" else torch.contiguous_format


def bind(pool, mode, input, output_size, grad_output):
    """Return a function without arguments that does what `mode` says, once.

    All providers go through the same calls: ``forward`` on an input that needs no gradient, ``backward`` through
    `torch.autograd.grad` on a graph that is kept, ``full`` the two in a row, as in a training step.
    Every call returns fresh memory.
    """
    if mode == "forward":
        return lambda: pool(input, output_size)
    leaf = input.detach().requires_grad_()
    if mode == "full":
        return lambda: torch.autograd.grad(pool(leaf, output_size), leaf, grad_output)[0]
    output = pool(leaf, output_size)
    return lambda: torch.autograd.grad(output, leaf, grad_output, retain_graph=True)[0]


def bind_limit(mode, input):
    """Return the least work that `mode` could do: read the input once, or fill a gradient once.

    Forward has to read its input, as ``input.sum()`` does.
    Backward has to write its gradient: fresh memory is filled, which on the CPU comes from NumPy,
    because NumPy asks the system for huge pages.
    """
    if mode == "forward":
        return input.sum
    if input.device.type == "cuda":
        return lambda: torch.empty_like(input).fill_(1)
    size = (input.numel() * input.element_size() // 4,)
    return lambda: torch.from_numpy(np.empty(size, np.float32)).fill_(1)


def bytes_moved(case, mode, dtype):
    """Return how many bytes `mode` must move: every input read once, every result written once."""
    once = (case.input_elements + case.output_elements) * dtype.itemsize
    return 2 * once if mode == "full" else once


def available_threads():
    """Return how many threads this process may run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
