"""From tensors of any strides to kernels, which read one piece of memory: what is copied, and how much at once."""

import pytest
import torch
from helpers import LAYOUTS

from numba_pool import adaptive_avg_pool2d
from numba_pool.op import execute

SHAPE, OUTPUT = (7, 5, 13, 18), (4, 5)


def pooled(input, weights):
    """Return the results and the gradients of a batch, and of a sample without a batch."""
    for x, w in ((input, weights), (input[0], weights[0])):
        output = adaptive_avg_pool2d(x.requires_grad_(), OUTPUT)
        yield from (output, *torch.autograd.grad(output, x, w))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_give_the_bits_of_the_whole(layout, monkeypatch):
    input, weights = (LAYOUTS[layout](torch.randn(*SHAPE[:2], *size)) for size in (SHAPE[2:], OUTPUT))
    whole = list(pooled(input, weights))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        # Of the input one sample at a time and three; of the gradient, which is smaller, some and all.
        for part in (1, 3 * input[0].numel()):
            monkeypatch.setattr(execute, "PART", part)
            for one, other in zip(pooled(input, weights), whole, strict=True):
                assert one.equal(other)
                assert one.stride() == other.stride()


@pytest.fixture
def copies(monkeypatch):
    """List the shapes of what is copied."""
    shapes, empty = [], execute.empty

    def listed(shape, *others):
        shapes.append(tuple(shape))
        return empty(shape, *others)

    monkeypatch.setattr(execute, "empty", listed)
    return shapes


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "shifted"])
def test_what_lies_in_one_piece_is_not_copied(layout, copies):
    adaptive_avg_pool2d(LAYOUTS[layout](torch.randn(SHAPE)), OUTPUT)
    assert copies == [(*SHAPE[:2], *OUTPUT)]


def test_a_crop_is_copied_some_samples_at_a_time(copies, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(execute, "PART", 3 * 5 * 13 * 18)
    adaptive_avg_pool2d(torch.randn(7, 5, 15, 18)[:, :, 1:-1], OUTPUT)
    assert copies == [(*SHAPE[:2], *OUTPUT), (3, *SHAPE[1:]), (3, *SHAPE[1:]), (1, *SHAPE[1:])]


def test_samples_that_lie_in_one_piece_each_are_not_copied(copies, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(execute, "PART", 1)
    adaptive_avg_pool2d(torch.randn(14, *SHAPE[1:])[::2], OUTPUT)
    assert copies == [(*SHAPE[:2], *OUTPUT)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_take_any_layout(layout):
    """Of the input and of the gradient, whose bits are those of the plain call."""
    operators = torch.ops.numba_pool
    input, weights = (LAYOUTS[layout](torch.randn(*SHAPE[:2], *size)) for size in (SHAPE[2:], OUTPUT))
    assert operators.adaptive_avg_pool2d(input, OUTPUT).equal(adaptive_avg_pool2d(input, OUTPUT))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        leaf = torch.zeros(SHAPE).contiguous(memory_format=memory_format).requires_grad_()
        (expected,) = torch.autograd.grad(adaptive_avg_pool2d(leaf, OUTPUT), leaf, weights)
        channels_last = memory_format is torch.channels_last
        gradient = operators.adaptive_avg_pool2d_backward(weights, SHAPE[2:], channels_last)
        assert gradient.equal(expected)
        assert gradient.stride() == leaf.stride()
