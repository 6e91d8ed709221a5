"""The graph that eager mode builds, and what a profiler sees of it."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile

from numba_pool import adaptive_avg_pool2d
from numba_pool.op import library


def step(x):
    y = adaptive_avg_pool2d(x, (3, 2))
    (gradient,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    return y, gradient, *torch.autograd.grad(gradient.pow(2).sum(), x)


def test_nodes_are_named_for_what_they_do():
    x = torch.randn(2, 3, 7, 5, requires_grad=True)
    y, gradient, _ = step(x)
    assert type(y.grad_fn).__name__ == "AdaptiveAvgPool2dBackward"
    assert type(gradient.grad_fn).__name__ == "AdaptiveAvgPool2dBackwardBackward"
    assert adaptive_avg_pool2d(x.detach(), 2).grad_fn is None


@pytest.fixture
def operators(monkeypatch):
    """Count how often the operators are called."""
    called = []

    def counted(operator):
        def call(*arguments):
            called.append(operator)
            return operator(*arguments)

        return call

    for name in ("adaptive_avg_pool2d", "adaptive_avg_pool2d_backward"):
        monkeypatch.setattr(library, name, counted(getattr(library, name)))
    return called


@pytest.mark.parametrize("details", [{}, {"record_shapes": True, "profile_memory": True, "with_stack": True}], ids=str)
def test_a_profiler_sees_operators(details, operators):
    x = torch.randn(2, 3, 7, 5, requires_grad=True)
    expected = step(x)
    assert not operators
    with profile(activities=[ProfilerActivity.CPU], **details) as profiler:
        results = step(x)
    for result, other in zip(results, expected, strict=True):
        assert torch.equal(result, other)
    assert len(operators) == 4
    ours = [event for event in profiler.events() if event.name.startswith("numba_pool::")]
    names = [event.name.removeprefix("numba_pool::") for event in ours]
    assert names == 2 * ["adaptive_avg_pool2d", "adaptive_avg_pool2d_backward"]
    if details:
        assert [event.input_shapes[0] for event in ours] == 2 * [[2, 3, 7, 5], [2, 3, 3, 2]]
        itself = {event.key: event for event in profiler.key_averages()}
        assert itself["numba_pool::adaptive_avg_pool2d"].cpu_memory_usage == 2 * 4 * results[0].numel()
        assert itself["numba_pool::adaptive_avg_pool2d_backward"].cpu_memory_usage == 2 * 4 * x.numel()


def test_plain_calls_do_not_pass_the_dispatcher(operators):
    """It costs more than pooling a small tensor does; only an observer wants it."""
    x = torch.randn(2, 3, 7, 5, requires_grad=True)
    step(x)
    with torch.no_grad():
        adaptive_avg_pool2d(x, 2)
    with forward_ad.dual_level():
        adaptive_avg_pool2d(forward_ad.make_dual(x.detach(), x.detach()), 2)
    assert not operators
    torch.func.grad(lambda a: adaptive_avg_pool2d(a, 2).sum())(x.detach())
    assert len(operators) == 2
