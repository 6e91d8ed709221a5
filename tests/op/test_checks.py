"""Wrong arguments: the exceptions of torch's own op, with messages at least as telling, at every output size."""

import ast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import PACKAGES

from numba_pool import AdaptiveAvgPool2d, adaptive_avg_pool2d


class Two:
    """An integer that is no int."""

    def __index__(self):
        return 2


X = torch.ones(2, 3, 5, 7)
PIXELS = torch.ones(5, 7)

# Input, output_size, what torch's op raises too, and what the message says.
LIKE_TORCH = [
    (PIXELS, (2, 3), ValueError, r"Input dimension should be at least 3"),
    (PIXELS, (1, 1), ValueError, r"Input dimension should be at least 3"),
    (torch.ones(()), (2, 3), ValueError, r"Input dimension should be at least 3"),
    (X, (2, 3, 4, 5), ValueError, r"Input dimension should be at least 5"),
    (PIXELS, 2, RuntimeError, r"adaptive_avg_pool2d\(\): Expected 3D or 4D tensor, but got \[5, 7\]"),
    (X[None], 2, RuntimeError, r"adaptive_avg_pool2d\(\): Expected 3D or 4D tensor, but got \[1, 2, 3, 5, 7\]"),
    (X, (), RuntimeError, r"adaptive_avg_pool2d: output_size must be 2, but got 0"),
    (X, (2,), RuntimeError, r"adaptive_avg_pool2d: output_size must be 2, but got 1"),
    (X, (2, 3, 4), RuntimeError, r"adaptive_avg_pool2d: output_size must be 2, but got 3"),
    (X, {2: 3}, RuntimeError, r"adaptive_avg_pool2d: output_size must be 2, but got 1"),
    (X, -1, RuntimeError, r"elements of output_size must be greater than or equal to 0 but received \{-1, -1\}"),
    (X, (2, -2), RuntimeError, r"elements of output_size must be greater than or equal to 0 but received \{2, -2\}"),
    (
        X[:, :, :0],
        2,
        RuntimeError,
        r"non-zero size for non-batch.* has sizes \[2, 3, 0, 7\] with dimension 2 being empty",
    ),
    (
        X[0, :, :, :0],
        2,
        RuntimeError,
        r"non-zero size for non-batch.* has sizes \[3, 5, 0\] with dimension 2 being empty",
    ),
    (X[:, :, :0], (0, 7), RuntimeError, r"with dimension 2 being empty"),
    (X, None, TypeError, r"argument 'output_size' \(position 2\) must be an int or a tuple of ints, not NoneType"),
    (X, 2.0, TypeError, r"argument 'output_size' \(position 2\) must be .* not float"),
    (X, True, TypeError, r"argument 'output_size' \(position 2\) must be .* not bool"),
    (X, "22", TypeError, r"argument 'output_size' \(position 2\) must be .* not str"),
    (X, 1j, TypeError, r"argument 'output_size' \(position 2\) must be .* not complex"),
    (X, object(), TypeError, r"argument 'output_size' \(position 2\) must be .* not object"),
    (X, torch.tensor(2.5), TypeError, r"argument 'output_size' \(position 2\) must be .* not Tensor"),
    (X, np.float32(2), TypeError, r"argument 'output_size' \(position 2\) must be .* not float32"),
    (X, (2.0, 3), TypeError, r"must be .* tuple of ints, but found element of type float at pos 0"),
    (X, (2, "3"), TypeError, r"must be .* tuple of ints, but found element of type str at pos 1"),
    (X, (True, 2), TypeError, r"must be .* tuple of ints, but found element of type bool at pos 0"),
    (X, (np.bool_(True), 2), TypeError, r"must be .* tuple of ints, but found element of type bool at pos 0"),
    (X, ((2,), (3,)), TypeError, r"must be .* tuple of ints, but found element of type tuple at pos 0"),
    (X, 2**63, ValueError, r"elements of output_size must fit 64 bits, but received 9223372036854775808"),
    (X, (2**62, 2), RuntimeError, r"cannot allocate a result of shape \[2, 3, "),
    (X, (2**31, 2**31), RuntimeError, r"cannot allocate a result of shape \[2, 3, "),
    (X, (2**62, 0), RuntimeError, r"overflowed with sizes=\[2, 3, "),
    (X, (2**40, 1), RuntimeError, r"cannot allocate a result of shape \[2, 3, "),
    (X.to("meta"), 2**62, RuntimeError, r"overflow"),
    (X.long(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Long'"),
    (X.bool(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Bool'"),
    (X.byte(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Byte'"),
    (X.short(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Short'"),
    (X.cdouble(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'ComplexDouble'"),
    (X.to(torch.float8_e5m2), 2, NotImplementedError, r"not implemented for 'torch.float8_e5m2'"),
    (X.to_sparse(), 2, NotImplementedError, r"expected a dense tensor; use \.to_dense\(\)"),
]

# What torch's op raises otherwise, or not at all, and why ours differs.
UNLIKE_TORCH = [
    # torch raises an internal error of its own: what is said is not what is wrong.
    ([[1.0]], 2, TypeError, r"argument 'input' \(position 1\) must be Tensor, not list", "AttributeError"),
    (None, 2, TypeError, r"argument 'input' \(position 1\) must be Tensor, not NoneType", "AttributeError"),
    (X, (torch.tensor(True), 2), TypeError, r"found element of type Tensor at pos 0", "RuntimeError"),
    (X, (2**64, 1), ValueError, r"must fit 64 bits, but received 18446744073709551616", "TypeError"),
    # torch takes each byte for a size.
    (X, b"22", TypeError, r"must be an int or a tuple of ints, not bytes", None),
    # For a 1x1 output torch calls another op, mean, which knows other checks, or none.
    (torch.ones(5), 1, RuntimeError, r"Expected 3D or 4D tensor, but got \[5\]", "IndexError"),
    (PIXELS, 1, RuntimeError, r"Expected 3D or 4D tensor, but got \[5, 7\]", None),
    (X[None], 1, RuntimeError, r"Expected 3D or 4D tensor, but got \[1, 2, 3, 5, 7\]", None),
    (X[:, :, :0], 1, RuntimeError, r"sizes \[2, 3, 0, 7\] with dimension 2 being empty", None),
    (X[..., :0], (1, 1), RuntimeError, r"sizes \[2, 3, 5, 0\] with dimension 3 being empty", None),
    (X.long(), 1, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Long'", "RuntimeError"),
    (X.cfloat(), 1, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'ComplexFloat'", None),
    # For an empty output torch does not look at the input at all.
    (X.long(), 0, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Long'", None),
    # A 2-D tensor cannot be pooled in any layout; torch looks at the layout first.
    (PIXELS.to_sparse(), 2, RuntimeError, r"Expected 3D or 4D tensor, but got \[5, 7\]", "NotImplementedError"),
]


def outcome(function, *arguments):
    """Return the name of the exception that a call raises, or None."""
    try:
        function(*arguments)
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize(("input", "output_size", "exception", "message"), LIKE_TORCH)
def test_wrong_arguments_as_torch(input, output_size, exception, message):
    assert outcome(F.adaptive_avg_pool2d, input, output_size) is exception
    with pytest.raises(exception, match=message) as caught:
        adaptive_avg_pool2d(input, output_size)
    assert type(caught.value) is exception
    with pytest.raises(exception, match=message):
        AdaptiveAvgPool2d(output_size)(input)


@pytest.mark.parametrize(("input", "output_size", "exception", "message", "torchs"), UNLIKE_TORCH)
def test_wrong_arguments_where_torch_differs(input, output_size, exception, message, torchs):
    assert getattr(outcome(F.adaptive_avg_pool2d, input, output_size), "__name__", None) == torchs
    with pytest.raises(exception, match=message) as caught:
        adaptive_avg_pool2d(input, output_size)
    assert type(caught.value) is exception


@pytest.mark.parametrize(
    "output_size",
    [
        [2, 3],
        torch.Size([2, 3]),
        (None, 3),
        (2, None),
        (None, None),
        range(2, 4),
        (np.int64(2), np.int32(3)),
        np.array([2, 3]),
        torch.tensor([2, 3]),
        (torch.tensor(2), 3),
        (Two(), 3),
    ],
    ids=repr,
)
def test_whatever_torch_takes_for_a_size(output_size):
    assert adaptive_avg_pool2d(X, output_size).shape == F.adaptive_avg_pool2d(X, output_size).shape


@pytest.mark.parametrize("output_size", [np.int64(2), np.array(2), torch.tensor(2), Two()], ids=repr)
def test_one_integer_of_another_library_is_a_square(output_size):
    """As a plain int is; torch's function takes int alone."""
    assert adaptive_avg_pool2d(X, output_size).shape == (2, 3, 2, 2)


@pytest.mark.parametrize("output_size", [1, 2, 0])
def test_a_device_that_is_not_supported(output_size, monkeypatch):
    """No other device is at hand, so the meta device stands in for one."""
    monkeypatch.setattr("numba_pool._validation.DEVICES", ("cpu", "cuda"))
    message = r"not implemented for the device type 'meta': expected a CPU or CUDA tensor; use torch.nn.functional"
    with pytest.raises(NotImplementedError, match=message):
        adaptive_avg_pool2d(X.to("meta"), output_size)


@pytest.mark.parametrize("output_size", [0, (0, 2), (2, 0)])
def test_no_gradient_of_an_empty_output(output_size):
    """An empty output can be computed, but not differentiated: so it is in torch."""
    for pool in (F.adaptive_avg_pool2d, adaptive_avg_pool2d):
        input = X.clone().requires_grad_()
        with pytest.raises(
            RuntimeError, match=r"adaptive_avg_pool2d_backward\(\): Expected grad_output to have non-zero size"
        ):
            pool(input, output_size).sum().backward()


def test_nothing_asserts():
    """An assert would vanish under ``python -O``, and say nothing where it stays."""
    for path in (PACKAGES / "numba_pool").rglob("*.py"):
        asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
        assert not asserts, f"{path}: assert in lines {asserts}"
