"""How it is timed: checked first, then interleaved."""

import time

import torch
from torch.utils.benchmark import Timer

from .providers import native


class WrongResult(Exception):
    """A provider's result differs from the expected one: there is nothing to time."""


def expect(case, mode, input, grad_output):
    """Compute what `mode` should return, by the native op in float64.

    Returns
    -------
    want : torch.Tensor
        The output for ``"forward"``, else the gradient of the input.
    scale : torch.Tensor
        The result for the absolute values: rounding errors are in proportion to it.
    terms : float
        How many numbers are added for one element of the result, about.
    """
    input, grad_output = input.double(), grad_output.double()
    if mode == "forward":
        want, scale = (native(values, case.output_size) for values in (input, input.abs()))
        return want, scale, max(1.0, case.window)
    leaf = input.requires_grad_()
    output = native(leaf, case.output_size)
    want, scale = (
        torch.autograd.grad(output, leaf, grad, retain_graph=True)[0] for grad in (grad_output, grad_output.abs())
    )
    return want, scale, max(1.0, 1 / case.window)


def check(result, want, scale, terms, chained):
    """Raise `WrongResult` unless a result is as near to the expected one as its type allows.

    The last rounding may err by the unit of the result's own type.
    Sums are held to 64 units of float32 (of float64 for float64), however many terms they have.
    A `chained` provider, which adds one term after the other in the result's own type, is held to a bound that grows
    with the root of the number of terms. The other arguments are those that `expect` returns.
    """
    if result.shape != want.shape:
        raise WrongResult(f"shape {tuple(result.shape)}, expected {tuple(want.shape)}")
    own = torch.finfo(result.dtype).eps
    growth = own * (64 + 8 * terms**0.5) if chained else min(own, torch.finfo(torch.float32).eps) * 64
    tiny = torch.finfo(result.dtype).smallest_normal * own
    # In place, because memory that is fresh for every check would take longer than what is timed.
    bound = want.abs().mul_(own).add_(scale, alpha=growth).add_(tiny)
    error = (result - want).abs_()
    inside = error <= bound  # a NaN is not
    if not inside.all():
        at = int((error - bound).nan_to_num(torch.inf).argmax())
        found, right, allowed = (values.flatten()[at].item() for values in (result, want, bound))
        raise WrongResult(
            f"{int((~inside).sum())} of {inside.numel()} elements are off; "
            f"the worst is {found:.6g}, expected {right:.6g} ± {allowed:.2g}"
        )


def cpu_sampler(call, threads):
    """Return ``sample(number)``: the seconds for one of `number` calls, by `torch.utils.benchmark.Timer`.

    Every sample begins with two calls or more that are not timed, so each provider finds its own warm state
    although another one ran in between.
    """
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    return lambda number: timer.timeit(number).median


def cuda_sampler(call, threads):
    """Return ``sample(number)``: the seconds for one of `number` calls between two CUDA events."""

    def sample(number):
        for _ in range(2):
            call()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(number):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / number

    return sample


SAMPLERS = {"cpu": cpu_sampler, "cuda": cuda_sampler}


def interleave(samplers, block=0.004, seconds=0.3, rounds=(5, 15), clock=time.perf_counter):
    """Sample several functions in turn, so that a disturbance hits all of them alike.

    One sample is the mean over a block of calls that take `block` seconds together; every second round runs in the
    opposite order.

    Parameters
    ----------
    samplers : dict of str to callable
        ``sample(number)`` returns the seconds for one of `number` calls.
    block : float
        Seconds that the calls of one sample should take together.
    seconds : float
        Stop after a round that ends later than this, once there are enough rounds.
    rounds : tuple of int
        The fewest and the most rounds.
    clock : callable
        Tells the time in seconds.

    Returns
    -------
    dict of str to list of float
        Seconds for each call; entry ``i`` of every list belongs to round ``i``, which makes ratios pairwise.
    """
    numbers = {}
    for name, sample in samplers.items():
        number = 1
        # One call of a few microseconds would be a poor guess: the block grows until it is long enough.
        while (taken := sample(number) * number) < block / 4 and number < 1_000_000:
            number *= 8
        numbers[name] = max(1, round(number * block / taken))
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    started = clock()
    for i in range(rounds[1]):
        order = list(samplers) if i % 2 == 0 else list(reversed(samplers))
        for name in order:
            samples[name].append(samplers[name](numbers[name]))
        if i + 1 >= rounds[0] and clock() - started > seconds:
            break
    return samples
