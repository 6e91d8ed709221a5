"""What is run: the layer alone, in networks, on ever new sizes, and in fresh processes."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import nn

from .cases import Case
from .compare import bound
from .providers import LIMIT, bind, bind_limit, bytes_moved, make_input, memory_format, native
from .records import Measurement
from .timing import SAMPLERS, WrongResult, check, expect, interleave


@dataclass(frozen=True)
class Task:
    """Something to time with every provider: bound arguments and the expected result.

    Parameters
    ----------
    case : Case
        What it is called.
    mode, layout : str
        How it is run.
    dtype : torch.dtype
        The type of the input.
    bind : callable
        Takes a provider's function, returns a function without arguments to time.
    expected : tuple
        What `check` needs: the result in float64, the scale of its errors, the number of terms.
    limit : callable, optional
        The least work that could be done, to time beside the providers.
    """

    case: Case
    mode: str
    layout: str
    dtype: torch.dtype
    bind: Callable
    expected: tuple[torch.Tensor, torch.Tensor, float]
    limit: Callable | None = None


def layer_task(case, mode, layout, dtype, device):
    """Return the task of a layer on its own."""
    generator = torch.Generator().manual_seed(0)
    input = make_input(case, dtype, layout, device, generator)
    grad_output = torch.randn((*case.input_size[:2], *case.output_size), generator=generator)
    grad_output = grad_output.to(device, dtype).contiguous(memory_format=memory_format(layout))
    has_limit = case.study in ("cases", "pixels") and mode != "full" and layout != "strided" and dtype.itemsize >= 4
    return Task(
        case,
        mode,
        layout,
        dtype,
        lambda pool: bind(pool, mode, input, case.output_size, grad_output),
        expect(case, mode, input, grad_output),
        bind_limit(mode, input) if has_limit else None,
    )


class Excite(nn.Module):
    """Squeeze and excitation: each channel is scaled by what the means of all channels say (Hu et al., 2018)."""

    def __init__(self, channels, pool):
        super().__init__()
        self.pool = pool
        self.scale = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1), nn.ReLU(), nn.Conv2d(channels // 4, channels, 1), nn.Sigmoid()
        )

    def forward(self, input):
        return input * self.scale(self.pool(input, 1))


class Pyramid(nn.Module):
    """Pyramid pooling: the means of 1, 4, 9 and 36 regions beside the features themselves (Zhao et al., 2017)."""

    def __init__(self, channels, pool):
        super().__init__()
        self.pool = pool
        self.reduce = nn.ModuleList(nn.Conv2d(channels, channels // 4, 1) for _ in range(4))

    def forward(self, input):
        size = input.shape[2:]
        pooled = (reduce(self.pool(input, bins)) for bins, reduce in zip((1, 2, 3, 6), self.reduce, strict=True))
        return torch.cat([input, *(nn.functional.interpolate(p, size, mode="bilinear") for p in pooled)], 1)


def excited(pool):
    """Return a small network of four squeeze-and-excitation blocks."""
    layers = []
    for channels, wider in ((3, 32), (32, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(channels, wider, 3, 2, 1), nn.ReLU(), Excite(wider, pool)]
    return nn.Sequential(*layers)


def segmented(pool):
    """Return a small segmentation network with a pooling pyramid of four levels."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 4, 1), nn.ReLU(), nn.Conv2d(64, 256, 1), Pyramid(256, pool), nn.Conv2d(512, 8, 1)
    )


NETWORKS = {
    Case("SE network", "four means of large maps", (4, 3, 112, 112), (1, 1), study="network"): excited,
    Case("pyramid network", "four output sizes on one map", (2, 3, 240, 240), (6, 6), study="network"): segmented,
}


def network_task(case, mode, layout, dtype, device):
    """Return the task of a network's step: ``forward`` is inference, ``full`` computes the gradients of all weights."""
    input = make_input(case, dtype, layout, device, torch.Generator().manual_seed(0))

    def bind_network(pool, input=input):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = NETWORKS[case](pool).to(device, input.dtype, memory_format=memory_format(layout))
        if mode == "forward":
            return bound(model, input, mode)
        weights = tuple(model.parameters())
        grad_output = torch.ones_like(model(input))
        return lambda: torch.autograd.grad(model(input), weights, grad_output)[0]

    want = bind_network(native, input.double())()
    return Task(case, mode, layout, dtype, bind_network, (want, want.abs().max(), case.input_elements))


def measure(task, providers, threads, device="cpu", **timing):
    """Check, then time one task with several providers in turn; return a `Measurement` for each that ran.

    Providers without the task's mode or dtype are passed over. `timing` are arguments of `interleave`.

    Raises
    ------
    WrongResult
        If a provider's result is not the expected one; then nothing of the task is timed.
    """
    torch.set_num_threads(threads)
    want, scale, terms = task.expected
    calls = {}
    dtype = name_of(task.dtype)
    where = {"case": task.case.name, "mode": task.mode, "layout": task.layout, "dtype": dtype}
    for provider in providers:
        if task.mode not in provider.modes or dtype not in provider.dtypes:
            continue
        call = task.bind(provider.make())
        result = call()
        try:
            check(result.detach(), want, scale, terms, provider.chained)
        except WrongResult as error:
            at = ", ".join(f"{name} {value}" for name, value in where.items())
            raise WrongResult(f"{provider.name} is wrong at {at}, {threads} threads: {error}") from None
        calls[provider.name] = call
    if task.limit is not None and calls:
        calls[LIMIT] = task.limit
    samples = interleave({name: SAMPLERS[device](call, threads) for name, call in calls.items()}, **timing)
    moved = dict.fromkeys(calls, bytes_moved(task.case, task.mode, task.dtype))
    moved |= {LIMIT: task.case.input_elements * task.dtype.itemsize}
    about = task.case.study, task.case.name, task.case.input_size, task.case.output_size, task.mode
    how = task.layout, dtype, threads
    return [Measurement(*about, name, *how, moved[name], tuple(samples[name])) for name in calls]


def measure_new_sizes(case, mode, providers, threads, count=200):
    """Time `count` inputs of sizes that never come again, each size once with every provider.

    The batch, the channels and the output size are the case's. Entry ``i`` of all samples belongs to the same size,
    which makes ratios pairwise.
    """
    torch.set_num_threads(threads)
    sizes = [(H, W) for H in range(20, 81) for W in range(20, 81)]
    random.Random(0).shuffle(sizes)
    warm_up = [(81 + k, 83) for k in range(5)]
    samples: dict[str, list[float]] = {provider.name: [] for provider in providers}
    for i, (H, W) in enumerate([*warm_up, *sizes[:count]]):
        one = replace(case, input_size=(*case.input_size[:2], H, W))
        input = make_input(one, torch.float32, "NCHW", "cpu", torch.Generator().manual_seed(i))
        grad_output = torch.ones(*case.input_size[:2], *case.output_size)
        for provider in providers if i % 2 == 0 else providers[::-1]:
            call = bind(provider.make(), mode, input, case.output_size, grad_output)
            started = time.perf_counter()
            call()
            samples[provider.name].append(time.perf_counter() - started)
    moved = bytes_moved(case, mode, torch.float32)
    about = case.study, case.name, case.input_size, case.output_size, mode
    return [
        Measurement(*about, name, "NCHW", "float32", threads, moved, tuple(taken[len(warm_up) :]))
        for name, taken in samples.items()
    ]


def copy_bandwidth(device, size=2**30):
    """Return the gigabytes (1e9 bytes) a second that a copy of `size` bytes moves, which no cache holds."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    samples = interleave({"copy": SAMPLERS[device](lambda: target.copy_(source), torch.get_num_threads())})
    return 2 * size / median(samples["copy"]) / 1e9


def name_of(dtype):
    """Return ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


FIRST_RESULT = """
import json, sys, time
import torch, numba
torch.set_num_threads(int(sys.argv[1]))
input = torch.randn(8, 64, 56, 56, requires_grad=True)
times = {}
def lap(name, start):
    times[name] = time.perf_counter() - start
    return time.perf_counter()
start = begin = time.perf_counter()
import numba_pool
start = lap("import", start)
output = numba_pool.adaptive_avg_pool2d(input, (7, 5))
start = lap("forward", start)
output.sum().backward()
lap("backward", start)
lap("total", begin)
print(json.dumps(times))
"""


def first_results(threads):
    """Time the first forward and backward of fresh processes, which import torch and numba before the clock starts.

    The first process finds an empty cache and compiles; the second finds what the first has left. Return for each
    the state of the ``cache``, ``threads``, and the seconds of ``import``, ``forward``, ``backward`` and their
    ``total``.
    """
    results = []
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty", "filled"):
            process = subprocess.run(
                [sys.executable, "-c", FIRST_RESULT, str(threads)],
                env=os.environ | {"NUMBA_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
            )
            if process.returncode != 0:
                raise RuntimeError(f"the process with the {state} cache failed:\n{process.stderr}")
            results.append({"cache": state, "threads": threads, **json.loads(process.stdout.splitlines()[-1])})
    return results
