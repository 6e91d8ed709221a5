"""What is run: the layer alone, the layer in a network, and the first results of fresh processes."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from .cases import Case
from .providers import LIMIT, bind, bind_limit, bytes_moved, make_input, memory_format, native
from .records import Measurement
from .timing import SAMPLERS, WrongResult, check, expect, first_call, interleave

NETWORKS = (
    Case("conv, half 56 to 28, ReLU", "between two convolutions", (4, 32, 56, 56), (28, 28), study="network"),
    Case("conv, 57 to 56, ReLU", "windows that overlap", (4, 16, 57, 57), (56, 56), study="network"),
    Case("conv, 13 to 6, ReLU", "the neck of a classifier", (8, 64, 13, 13), (6, 6), study="network"),
    Case("conv, 14 to 1, ReLU", "the mean, then a 1x1 convolution", (16, 64, 14, 14), (1, 1), study="network"),
)  # fmt: skip


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
    has_limit = mode != "full" and layout != "strided" and dtype.itemsize >= 4
    return Task(
        case,
        mode,
        layout,
        dtype,
        lambda pool: bind(pool, mode, input, case.output_size, grad_output),
        expect(case, mode, input, grad_output),
        bind_limit(mode, input) if has_limit else None,
    )


class Pool(torch.nn.Module):
    """A provider's function as a layer."""

    def __init__(self, pool, output_size):
        super().__init__()
        self.pool, self.output_size = pool, output_size

    def forward(self, input):
        return self.pool(input, self.output_size)


def network(pool, case):
    """Return a small network with a pooling layer between a convolution and ReLU, always with the same weights."""
    channels = case.input_size[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(channels, channels, 3, padding=1),
            Pool(pool, case.output_size),
            torch.nn.ReLU(),
            torch.nn.Conv2d(channels, channels, 1),
        )


def network_task(case, mode, layout, dtype, device):
    """Return the task of a network's step: ``forward`` is inference, ``full`` computes all weights' gradients."""
    input = make_input(case, dtype, layout, device, torch.Generator().manual_seed(0))

    def bind_network(pool, input=input):
        model = network(pool, case).to(device, input.dtype, memory_format=memory_format(layout))
        if mode == "forward":

            def infer():
                with torch.no_grad():
                    return model(input)

            return infer
        weights = tuple(model.parameters())
        grad_output = torch.ones_like(model(input))
        return lambda: torch.autograd.grad(model(input), weights, grad_output)[0]

    want = bind_network(native, input.double())()
    return Task(case, mode, layout, dtype, bind_network, (want, want.abs().max(), case.input_elements))


def measure(task, providers, threads, device="cpu", **timing):
    """Check, then time one task with several providers in turn.

    Parameters
    ----------
    task : Task
        As `layer_task` or `network_task` returns it.
    providers : list of Provider
        Those without the task's mode or dtype are passed over.
    threads : int
        How many threads torch, and with it the package, may use.
    device : str
        Chooses the clock.
    **timing
        Arguments of `interleave`.

    Returns
    -------
    measurements : list of Measurement
        One for each provider that ran, and one named ``"limit"`` where the task has one.
    skipped : list of dict
        Providers that could not run, each with the reason.

    Raises
    ------
    WrongResult
        If a provider's result is not the expected one; then nothing of the task is timed.
    """
    torch.set_num_threads(threads)
    want, scale, terms = task.expected
    calls, first, skipped = {}, {}, []
    where = {"case": task.case.name, "mode": task.mode, "layout": task.layout, "dtype": name_of(task.dtype)}
    for provider in providers:
        if task.mode not in provider.modes or name_of(task.dtype) not in provider.dtypes:
            continue
        try:
            call = task.bind(provider.make())
            result, seconds = first_call(call, device)
        except Exception as error:
            if provider.name != "torch-compile":  # a compiler may be missing; nothing else may fail
                raise
            skipped.append({"provider": provider.name, **where, "reason": f"{type(error).__name__}: {error}"[:300]})
            continue
        try:
            check(result.detach(), want, scale, terms, provider.chained)
        except WrongResult as error:
            at = ", ".join(f"{name} {value}" for name, value in where.items())
            raise WrongResult(f"{provider.name} is wrong at {at}, {threads} threads: {error}") from None
        calls[provider.name], first[provider.name] = call, seconds
    if task.limit is not None and calls:
        calls[LIMIT] = task.limit
        _, first[LIMIT] = first_call(task.limit, device)
    samples = interleave({name: SAMPLERS[device](call, threads) for name, call in calls.items()}, **timing)
    moved = bytes_moved(task.case, task.mode, task.dtype)
    if LIMIT in calls:
        touched = task.case.input_elements * task.dtype.itemsize
    return [
        Measurement(
            task.case.study,
            task.case.name,
            task.case.reason,
            task.case.input_size,
            task.case.output_size,
            task.mode,
            name,
            task.layout,
            name_of(task.dtype),
            threads,
            touched if name == LIMIT else moved,
            first[name],
            tuple(samples[name]),
        )
        for name in calls
    ], skipped


def measure_new_sizes(case, mode, providers, threads, count=200):
    """Time inputs of sizes that never come again, each size once with every provider.

    Parameters
    ----------
    case : Case
        Its batch, its channels and its output size are kept.
    mode : str
        ``"forward"``, or ``"full"`` for a training step.
    providers : list of Provider
        Those to time in turn; every second size in the opposite order.
    threads : int
        How many threads torch, and with it the package, may use.
    count : int
        How many sizes.

    Returns
    -------
    list of Measurement
        One for each provider; entry ``i`` of all samples belongs to the same size, which makes ratios pairwise.
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
    about = case.study, case.name, case.reason, case.input_size, case.output_size, mode
    return [
        Measurement(*about, name, "NCHW", "float32", threads, moved, taken[0], tuple(taken[len(warm_up) :]))
        for name, taken in samples.items()
    ]


def copy_bandwidth(device, size=2**30):
    """Measure what the device's memory gives: gigabytes (1e9 bytes) read and written in a second by a plain copy.

    Parameters
    ----------
    device : str
        ``"cpu"`` or ``"cuda"``.
    size : int
        Bytes to copy: far more than any cache holds.

    Returns
    -------
    float
        Twice the bytes over the median time.
    """
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
shape, output_size = json.loads(sys.argv[2])
input = torch.randn(shape, requires_grad=True)
times = {}
def lap(name, start):
    times[name] = time.perf_counter() - start
    return time.perf_counter()
start = begin = time.perf_counter()
import numba_pool
start = lap("import", start)
output = numba_pool.adaptive_avg_pool2d(input, tuple(output_size))
start = lap("forward", start)
output.sum().backward()
lap("backward", start)
lap("total", begin)
print(json.dumps(times))
"""


def first_results(threads, input_size=(8, 64, 56, 56), output_size=(7, 5)):
    """Time the first forward and backward of fresh processes, which import torch and numba before the clock starts.

    The first process finds an empty cache and compiles; the second finds what the first has left.

    Parameters
    ----------
    threads : int
        How many threads torch may use.
    input_size, output_size : tuple of int
        What is pooled, in float32.

    Returns
    -------
    list of dict
        For each process: ``cache`` (``"empty"`` or ``"filled"``), ``threads``, and the seconds of ``import`` (of the
        package), ``forward``, ``backward`` and their ``total``.

    Raises
    ------
    RuntimeError
        If a process fails, with what it said.
    """
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (os.fspath(root), os.environ.get("PYTHONPATH"))))
    results = []
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty", "filled"):
            process = subprocess.run(
                [sys.executable, "-c", FIRST_RESULT, str(threads), json.dumps([input_size, output_size])],
                env=os.environ | {"NUMBA_CACHE_DIR": cache, "PYTHONPATH": path},
                capture_output=True,
                text=True,
            )
            if process.returncode != 0:
                raise RuntimeError(f"the process with the {state} cache failed:\n{process.stderr}")
            results.append({"cache": state, "threads": threads, **json.loads(process.stdout.splitlines()[-1])})
    return results
