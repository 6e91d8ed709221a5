"""Properties that hold for any shape, dtype, layout and strides: hypothesis chooses them."""

import torch
from helpers import DTYPES, LAYOUTS, assert_close, exact_gradient, exact_pool
from hypothesis import given
from hypothesis import strategies as st
from torch._prims_common import suggest_memory_format

from numba_pool import adaptive_avg_pool2d, pooling_windows

sizes = st.integers(1, 70)
output_sizes = st.tuples(*[st.one_of(st.none(), st.integers(1, 40))] * 2)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def strided(draw, dtypes=DTYPES):
    """Draw a tensor: a window with steps into an array of up to four permuted axes."""
    shape = [draw(st.integers(1, 4)), draw(st.integers(1, 20)), draw(sizes), draw(sizes)]
    order = draw(st.permutations(range(4)))
    steps = [draw(st.integers(1, 2)) for _ in shape]
    margins = [draw(st.integers(0, 2)) for _ in shape]
    memory = [margins[axis] + shape[axis] * steps[axis] for axis in order]
    generator = torch.Generator().manual_seed(draw(seeds))
    big = torch.randn(memory, generator=generator).to(draw(st.sampled_from(dtypes)))
    big = big.permute([order.index(axis) for axis in range(4)])
    return big[tuple(slice(m, m + n * s, s) for m, n, s in zip(margins, shape, steps, strict=True))]


@given(strided(), output_sizes)
def test_any_strides(input, output_size):
    input.requires_grad_()
    output = adaptive_avg_pool2d(input, output_size)
    expected = torch.nn.functional.adaptive_avg_pool2d(input, output_size)
    assert (output.dtype, output.shape, output.stride()) == (expected.dtype, expected.shape, expected.stride())
    assert_close(output, *exact_pool(input, output_size))
    (grad,) = torch.autograd.grad(output, input, expected.detach())
    assert grad.stride() == torch.empty(input.shape, memory_format=suggest_memory_format(input)).stride()
    assert_close(grad, *exact_gradient(expected, input.shape[-2:]))


@given(strided(), output_sizes, st.sampled_from(sorted(LAYOUTS)))
def test_the_layout_does_not_change_the_bits(input, output_size, layout):
    """Every layout that shares a memory format gives the same bits."""
    laid_out = LAYOUTS[layout](input)
    memory_format = suggest_memory_format(laid_out)
    dense = laid_out.clone().contiguous(memory_format=memory_format)
    if suggest_memory_format(dense) == memory_format:
        assert adaptive_avg_pool2d(laid_out, output_size).equal(adaptive_avg_pool2d(dense, output_size))


@given(strided((torch.float64,)), output_sizes, seeds)
def test_pooling_is_linear_and_backward_is_its_transpose(input, output_size, seed):
    """The product of pool(x) and g is that of x and backward(g): a check that needs no other op."""
    input = input.detach().requires_grad_()
    output = adaptive_avg_pool2d(input, output_size)
    g = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (grad,) = torch.autograd.grad(output, input, g)
    bound = 1e-14 * adaptive_avg_pool2d(input.abs(), output_size).mul(g.abs()).sum()
    torch.testing.assert_close((output * g).sum(), (input * grad).sum(), rtol=0, atol=bound.item())


@given(strided((torch.float32, torch.float64)), output_sizes)
def test_a_mean_lies_between_the_extremes(input, output_size):
    """In particular, equal values stay equal, and an output of the input's size is the input."""
    output = adaptive_avg_pool2d(input, output_size)
    slack = 10 * torch.finfo(input.dtype).eps * input.abs().max()
    assert (output >= input.amin((-2, -1), keepdim=True) - slack).all()
    assert (output <= input.amax((-2, -1), keepdim=True) + slack).all()
    assert adaptive_avg_pool2d(input, (None, None)).equal(input)


@given(st.integers(1, 2**40), st.integers(1, 2000))
def test_windows_of_long_axes(input_size, output_size):
    starts, ends = pooling_windows(input_size, output_size)
    assert (starts[0], ends[-1]) == (0, input_size)
    assert (ends > starts).all()
    overlap = ends[:-1] - starts[1:]
    assert ((overlap == 0) | (overlap == 1)).all()
    assert (ends - starts).max() - (ends - starts).min() <= 1 if input_size % output_size else (overlap == 0).all()
