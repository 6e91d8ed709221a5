"""The layer against torch's own: values, gradients, strides, and what no layer of torch's promises."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, LAYOUTS, assert_close, exact_gradient, exact_pool
from torch._prims_common import suggest_memory_format

from numba_pool import adaptive_avg_pool2d, cpu

SHAPE = (3, 17, 13, 18)
OUTPUT_SIZES = (1, 2, (4, 5), (13, 1), (20, 7), (None, 6), (13, 18))
BOTH_FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
layouts = pytest.mark.parametrize("layout", LAYOUTS)
memory_formats = pytest.mark.parametrize("memory_format", BOTH_FORMATS.values(), ids=BOTH_FORMATS)


def check(input, output_size):
    """Hold the output and the gradient to torch's: values, dtype, shape, strides."""
    expected = F.adaptive_avg_pool2d(input, output_size)
    input.requires_grad_()
    output = adaptive_avg_pool2d(input, output_size)
    assert (output.dtype, output.shape, output.stride()) == (expected.dtype, expected.shape, expected.stride())
    assert_close(output, *exact_pool(input, output_size))

    grad_output = torch.randn_like(output)
    (grad,) = torch.autograd.grad(output, input, grad_output)
    assert (grad.dtype, grad.shape) == (input.dtype, input.shape)
    assert grad.stride() == torch.empty(input.shape, memory_format=suggest_memory_format(input)).stride()
    assert_close(grad, *exact_gradient(grad_output, input.shape[-2:]))


@dtypes
@layouts
def test_every_layout_and_dtype(layout, dtype):
    for output_size in OUTPUT_SIZES:
        check(LAYOUTS[layout](torch.randn(SHAPE, dtype=dtype)), output_size)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1, 9, 10), (1, 5, 1, 1), (4, 1, 1, 12), (3, 5, 12, 1), (1, 5, 9, 10)], ids=str)
def test_sizes_of_one_leave_the_memory_format_open(shape, dtype):
    for layout in ("contiguous", "channels_last", "transposed"):
        for output_size in (1, (2, 3), (1, 11)):
            check(LAYOUTS[layout](torch.randn(shape, dtype=dtype)), output_size)


@memory_formats
@pytest.mark.parametrize("C", [3, 17])
def test_combinations_of_sizes(C, memory_format):
    combinations = list(itertools.product((1, 2, 5, 8, 18, 64), repeat=4))
    for H, W, *output_size in random.Random(f"{C} {memory_format}").sample(combinations, 75):
        check(torch.randn(2, C, H, W, dtype=torch.double).to(memory_format=memory_format), output_size)


@dtypes
@pytest.mark.parametrize("output_size", [1, (4, 5), (20, None)], ids=str)
def test_without_a_batch(output_size, dtype):
    check(torch.randn(5, 13, 18, dtype=dtype), output_size)
    check(torch.randn(5, 18, 13, dtype=dtype).mT, output_size)
    check(torch.randn(13, 18, 5, dtype=dtype).permute(2, 0, 1), output_size)


@dtypes
@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 0, 5, 7), (0, 0, 5, 7), (0, 5, 7)], ids=str)
def test_empty_input(shape, dtype):
    for output_size in (1, (2, 3), (None, 9)):
        input = torch.empty(shape, dtype=dtype, requires_grad=True)
        output = adaptive_avg_pool2d(input, output_size)
        expected = F.adaptive_avg_pool2d(input, output_size)
        assert (output.dtype, output.shape, output.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert torch.autograd.grad(output.sum(), input)[0].shape == shape


@dtypes
@pytest.mark.parametrize("output_size", [0, (0, 2), (2, 0), (None, 0)], ids=str)
def test_empty_output(output_size, dtype):
    for input in (torch.ones(SHAPE, dtype=dtype), torch.ones(SHAPE[1:], dtype=dtype), torch.ones(0, 3, 5, 7)):
        output, expected = adaptive_avg_pool2d(input, output_size), F.adaptive_avg_pool2d(input, output_size)
        assert (output.dtype, output.shape) == (expected.dtype, expected.shape)


@memory_formats
@dtypes
def test_gradients_of_any_layout(dtype, memory_format):
    """The gradient's layout is the input's, whatever that of `grad_output`."""
    input = torch.randn(SHAPE, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    output = adaptive_avg_pool2d(input, (4, 5))
    for layout in LAYOUTS.values():
        grad_output = layout(torch.randn(output.shape, dtype=dtype))
        (grad,) = torch.autograd.grad(output, input, grad_output, retain_graph=True)
        assert grad.stride() == input.stride()
        assert_close(grad, *exact_gradient(grad_output, input.shape[-2:]))


@memory_formats
@dtypes
def test_backward_of_a_sum(dtype, memory_format):
    """A sum hands over one number for all elements: a gradient with strides of zero."""
    input = torch.randn(SHAPE, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    output = adaptive_avg_pool2d(input, (4, 5))
    output.sum().backward()
    assert_close(input.grad, *exact_gradient(torch.ones_like(output), input.shape[-2:]))


# What torch's own layer gets wrong.


@memory_formats
def test_large_windows_stay_accurate(memory_format):
    """Float32 windows of millions of elements; a single chain of additions is off by some percent."""
    for shape, output_size in (
        ((1, 2, 4096, 2048), 1),
        ((1, 2, 4096, 2048), (1, 2)),
        ((1, 2, 4096, 2048), (2, 1)),
        ((1, 1, 1, 4_000_001), (1, 2)),
        ((1, 1, 3, 2_000_001), (2, 2)),
        ((1, 1, 2_000_001, 3), (2, 2)),
    ):
        input = torch.full(shape, 0.1).contiguous(memory_format=memory_format)
        output = adaptive_avg_pool2d(input, output_size)
        torch.testing.assert_close(output, torch.full_like(output, 0.1), rtol=1e-6, atol=0)


@memory_formats
@pytest.mark.parametrize(("dtype", "side"), [(torch.bfloat16, 256), (torch.float16, 128), (torch.float32, 256)])
def test_gradients_do_not_saturate(dtype, side, memory_format):
    """A half type's sum of ones stops growing at 256 or 2048, where adding one no longer changes it."""
    input = torch.zeros(1, 3, 1, 1, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    adaptive_avg_pool2d(input, side).sum().backward()
    assert input.grad.flatten().tolist() == [side * side] * 3


@memory_formats
def test_torchs_number_of_threads_is_kept_to(memory_format, monkeypatch):
    """And does not change the bits."""
    given = []
    run = cpu.run
    monkeypatch.setattr(cpu, "run", lambda *arguments: given.append(arguments[-1]) or run(*arguments))
    input = torch.randn(8, 32, 56, 57).contiguous(memory_format=memory_format).requires_grad_()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        output = adaptive_avg_pool2d(input, (7, 9))
        results.append((output, *torch.autograd.grad(output, input, torch.ones_like(output))))
    assert given == [1, 1, 2, 2, 3, 3]
    for others in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], others, strict=True))


@memory_formats
def test_the_same_bits_alone_and_in_a_batch(memory_format):
    for shape, output_size in (((5, 6, 30, 31), (7, 9)), ((3, 4, 150, 151), 1), ((67, 3, 5, 6), (8, 7))):
        batch = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
        output = adaptive_avg_pool2d(batch, output_size)
        grad_output = torch.randn_like(output)
        (grad,) = torch.autograd.grad(output, batch, grad_output)
        for i in range(len(batch)):
            sample = batch.detach()[i : i + 1].requires_grad_()
            alone = adaptive_avg_pool2d(sample, output_size)
            assert alone.equal(output[i : i + 1])
            assert torch.autograd.grad(alone, sample, grad_output[i : i + 1])[0].equal(grad[i : i + 1])


@memory_formats
def test_nothing_is_saved_for_backward(memory_format):
    """Pooling is linear: its gradient needs no values, and so keeps no tensor alive."""
    saved = []
    input = torch.randn(SHAPE).contiguous(memory_format=memory_format).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        output = adaptive_avg_pool2d(input, (4, 5))
        (grad,) = torch.autograd.grad(output, input, torch.ones_like(output).requires_grad_(), create_graph=True)
        assert grad.requires_grad
        assert sum(saved) == 0
        # The hooks do see what is saved.
        input.square()
        assert sum(saved) == input.nbytes
