"""torch's own samples of the op, and its wrong inputs: they ship inside torch."""

import pytest
import torch
from helpers import DTYPES, assert_close, exact_gradient, exact_pool
from torch.testing._internal.common_methods_invocations import op_db

from numba_pool import adaptive_avg_pool2d

(OP,) = (op for op in op_db if op.name == "nn.functional.adaptive_avg_pool2d")


def test_all_dtypes_of_torch_are_ours():
    assert OP.supported_dtypes("cpu") == set(DTYPES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples(dtype):
    samples = list(OP.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) >= 8
    for sample in samples:
        output = adaptive_avg_pool2d(sample.input, *sample.args, **sample.kwargs)
        expected = OP(sample.input, *sample.args, **sample.kwargs)
        assert (output.dtype, output.shape, output.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert_close(output, *exact_pool(sample.input, *sample.args))
        grad_output = torch.randn_like(output)
        (grad,) = torch.autograd.grad(output, sample.input, grad_output)
        assert_close(grad, *exact_gradient(grad_output, sample.input.shape[-2:]))


def test_samples_have_the_right_derivatives():
    for sample in OP.sample_inputs("cpu", torch.float64, requires_grad=True):
        assert torch.autograd.gradcheck(adaptive_avg_pool2d, (sample.input, *sample.args), fast_mode=True)
        assert torch.autograd.gradgradcheck(adaptive_avg_pool2d, (sample.input, *sample.args), fast_mode=True)


def test_wrong_inputs():
    errors = list(OP.error_inputs("cpu"))
    assert len(errors) >= 3
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            adaptive_avg_pool2d(sample.input, *sample.args, **sample.kwargs)
