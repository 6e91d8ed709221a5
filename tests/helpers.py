"""What several tests share: inputs of every dtype and layout, how close is equal, and Python processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import numba_pool

ROOT = Path(__file__).resolve().parents[1]
# The folder that numba_pool is imported from.
PACKAGES = Path(numba_pool.__file__).resolve().parents[1]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# What the rounding errors of one sum may come to, in epsilons of the type that it is kept in, relative to the mean of
# the absolute values. Sums of partial sums leave up to 2.3 in the cases of test_kernels.py, one chain of additions 40.
SUM_EPSILONS = 4


def assert_rounded(actual, exact, size, epsilon, sum_epsilon, tiny):
    """Hold float64 arrays to the exact values: one rounding to the result's type, and what a good sum leaves before it.

    Parameters
    ----------
    actual, exact, size : numpy.ndarray
        The results, the same in float64, and the same of absolute values.
    epsilon, sum_epsilon : float
        Of the result's type, and of the type that sums are kept in.
    tiny : float
        The smallest number above zero of the result's type.
    """
    bound = epsilon / 2 * np.abs(exact) + SUM_EPSILONS * sum_epsilon * size + tiny / 2
    error = np.abs(actual - exact)
    assert actual.shape == exact.shape
    # Not `error > bound`: a NaN must fail.
    wrong = ~(error <= bound)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} are wrong, by up to {(error / bound).max():.3g} bounds"


def assert_close(actual, exact, size):
    """Hold a tensor to the exact values, given in float64, as `assert_rounded` does."""
    assert exact.dtype == size.dtype == torch.float64
    limits = torch.finfo(actual.dtype)
    # In float64 torch's own op, which makes one chain of each sum, is no more exact than what is held to it.
    sum_epsilon = 4 * limits.eps if actual.dtype == torch.float64 else torch.finfo(torch.float32).eps
    values, exact_values, sizes = (t.detach().resolve_neg().double().numpy() for t in (actual, exact, size))
    assert_rounded(values, exact_values, sizes, limits.eps, sum_epsilon, limits.smallest_normal * limits.eps)


def exact_pool(input, output_size):
    """Pool in float64 with torch's own op: the exact values, and those of the absolute values."""
    wide = input.detach().double()
    return F.adaptive_avg_pool2d(wide, output_size), F.adaptive_avg_pool2d(wide.abs(), output_size)


def exact_gradient(grad_output, input_size):
    """Take the gradient in float64 with torch's own op, of `grad_output` and of its absolute values."""
    wide = grad_output.detach().double()
    input = wide.new_zeros((*wide.shape[:-2], *input_size), requires_grad=True)
    output = F.adaptive_avg_pool2d(input, wide.shape[-2:])
    return tuple(torch.autograd.grad(output, input, g.contiguous(), retain_graph=True)[0] for g in (wide, wide.abs()))


def _sliced(x):
    big = x.new_full((*x.shape[:-2], x.shape[-2] + 2, 2 * x.shape[-1] + 1), torch.nan)
    big[..., 1:-1, 1::2] = x
    return big[..., 1:-1, 1::2]


def _every_other_sample(x):
    N, *sizes = x.shape
    big = x.new_full((2 * N, *sizes), torch.nan).contiguous(memory_format=torch.channels_last)
    big[::2] = x
    return big[::2]


def _some_channels(x, memory_format=torch.contiguous_format):
    N, C, H, W = x.shape
    big = x.new_full((N, C + 3, H, W), torch.nan).contiguous(memory_format=memory_format)
    big[:, 1:-2] = x
    return big[:, 1:-2]


def _shifted(x):
    return torch.cat((x.new_full((1,), torch.nan), x.reshape(-1)))[1:].view(x.shape)


# Ways to lay out the values of an (N, C, H, W) tensor in memory. What lies between the values is NaN.
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "shifted": _shifted,
    "sliced": _sliced,
    "sliced channels": lambda x: _some_channels(x, torch.channels_last),
    "some channels": _some_channels,
    "every other sample": _every_other_sample,
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "batch and channels swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded batch": lambda x: x[:1].expand_as(x),
    "expanded channels": lambda x: x[:, :1].expand_as(x),
    "expanded plane": lambda x: x[..., :1, :1].expand_as(x),
    "negative bit": lambda x: torch._neg_view(-x),
    "negative bit, sliced": lambda x: torch._neg_view(_sliced(-x)),
    "negative bit, some channels": lambda x: torch._neg_view(_some_channels(-x)),
    "negative bit, channels_last": lambda x: torch._neg_view(-x.contiguous(memory_format=torch.channels_last)),
}


def spawn(code, *arguments, packages=PACKAGES, **environment):
    """Run Python code in a process of its own, where numba_pool comes from a folder; return what it prints.

    A variable of the environment that is None is taken away.
    """
    variables = {**os.environ, "PYTHONPATH": packages, **environment}
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={name: str(value) for name, value in variables.items() if value is not None},
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, f"status {run.returncode}\n{run.stdout}\n{run.stderr}"
    return run.stdout
