"""Wrong arguments: what is raised, at every output size, and what it says."""

import ast

import numpy as np
import pytest
import torch
from helpers import PACKAGES

from numba_pool import AdaptiveAvgPool2d, adaptive_avg_pool2d


class Two:
    """An integer that is not an int."""

    def __index__(self):
        return 2

    def __repr__(self):  # names tests
        return "Two()"


X = torch.ones(2, 3, 5, 7)
PIXELS = torch.ones(5, 7)

# Input, output_size, the exception and what it says.
WRONG = [
    (PIXELS, (2, 3), ValueError, r"Input dimension should be at least 3"),
    (PIXELS, (1, 1), ValueError, r"Input dimension should be at least 3"),
    (torch.ones(()), (2, 3), ValueError, r"Input dimension should be at least 3"),
    (X, (2, 3, 4, 5), ValueError, r"output_size must be 2 ints or Nones, but got 4 elements"),
    (PIXELS, 2, RuntimeError, r"adaptive_avg_pool2d\(\): Expected 3D or 4D tensor, but got \[5, 7\]"),
    (X[None], 2, RuntimeError, r"adaptive_avg_pool2d\(\): Expected 3D or 4D tensor, but got \[1, 2, 3, 5, 7\]"),
    (X, (), RuntimeError, r"adaptive_avg_pool2d: output_size must be 2 ints or Nones, but got 0 elements"),
    (X, (2,), RuntimeError, r"adaptive_avg_pool2d: output_size must be 2 ints or Nones, but got 1 elements"),
    (X, (2, 3, 4), RuntimeError, r"adaptive_avg_pool2d: output_size must be 2 ints or Nones, but got 3 elements"),
    (X, {2: 3}, RuntimeError, r"adaptive_avg_pool2d: output_size must be 2 ints or Nones, but got 1 elements"),
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
    (X, (np.bool_(True), 2), TypeError, r"must be .* tuple of ints, but found element of type bool_? at pos 0"),
    (X, ((2,), (3,)), TypeError, r"must be .* tuple of ints, but found element of type tuple at pos 0"),
    (X, 2**63, ValueError, r"elements of output_size must fit 64 bits, but received 9223372036854775808"),
    (X, (2**62, 2), RuntimeError, r"overflow"),
    (X, (2**31, 2**31), RuntimeError, r"overflow"),
    (X, (2**62, 0), RuntimeError, r"overflow"),
    (X, (2**40, 1), RuntimeError, r"allocate"),
    (X.to("meta"), 2**62, RuntimeError, r"overflow"),
    (X.long(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Long'"),
    (X.bool(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Bool'"),
    (X.byte(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Byte'"),
    (X.short(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Short'"),
    (X.cdouble(), 2, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'ComplexDouble'"),
    (X.to(torch.float8_e5m2), 2, NotImplementedError, r"not implemented for 'torch.float8_e5m2'"),
    (X.to_sparse(), 2, NotImplementedError, r"expected a dense tensor; use \.to_dense\(\)"),
    ([[1.0]], 2, TypeError, r"argument 'input' \(position 1\) must be Tensor, not list"),
    (None, 2, TypeError, r"argument 'input' \(position 1\) must be Tensor, not NoneType"),
    (X, (torch.tensor(True), 2), TypeError, r"found element of type Tensor at pos 0"),
    (X, (2**64, 1), ValueError, r"must fit 64 bits, but received 18446744073709551616"),
    # Each byte would be an integer.
    (X, b"22", TypeError, r"must be an int or a tuple of ints, not bytes"),
    # Torch computes a 1x1 and an empty output in other ways, with other checks or none.
    (torch.ones(5), 1, RuntimeError, r"Expected 3D or 4D tensor, but got \[5\]"),
    (PIXELS, 1, RuntimeError, r"Expected 3D or 4D tensor, but got \[5, 7\]"),
    (X[None], 1, RuntimeError, r"Expected 3D or 4D tensor, but got \[1, 2, 3, 5, 7\]"),
    (X[:, :, :0], 1, RuntimeError, r"sizes \[2, 3, 0, 7\] with dimension 2 being empty"),
    (X[..., :0], (1, 1), RuntimeError, r"sizes \[2, 3, 5, 0\] with dimension 3 being empty"),
    (X.long(), 1, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Long'"),
    (X.cfloat(), 1, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'ComplexFloat'"),
    (X.long(), 0, NotImplementedError, r"\"adaptive_avg_pool2d\" not implemented for 'Long'"),
    # Whatever its layout.
    (PIXELS.to_sparse(), 2, RuntimeError, r"Expected 3D or 4D tensor, but got \[5, 7\]"),
]


@pytest.mark.parametrize(("input", "output_size", "exception", "message"), WRONG)
def test_wrong_arguments(input, output_size, exception, message):
    for pool in (adaptive_avg_pool2d, lambda input, output_size: AdaptiveAvgPool2d(output_size)(input)):
        with pytest.raises(exception, match=message) as caught:
            pool(input, output_size)
        assert type(caught.value) is exception


@pytest.mark.parametrize(
    ("output_size", "expected"),
    [
        ([2, 3], (2, 3)),
        (torch.Size([2, 3]), (2, 3)),
        ((None, 3), (5, 3)),
        ((2, None), (2, 7)),
        ((None, None), (5, 7)),
        (range(2, 4), (2, 3)),
        ((np.int64(2), np.int32(3)), (2, 3)),
        (np.array([2, 3]), (2, 3)),
        (torch.tensor([2, 3]), (2, 3)),
        ((torch.tensor(2), 3), (2, 3)),
        ((Two(), 3), (2, 3)),
    ],
    ids=repr,
)
def test_whatever_names_two_integers_is_a_size(output_size, expected):
    assert adaptive_avg_pool2d(X, output_size).shape == (2, 3, *expected)


@pytest.mark.parametrize("output_size", [np.int64(2), np.array(2), torch.tensor(2), Two()], ids=repr)
def test_one_integer_of_another_library_is_a_square(output_size):
    """As a plain int is; torch's function takes int alone."""
    assert adaptive_avg_pool2d(X, output_size).shape == (2, 3, 2, 2)


@pytest.mark.parametrize("output_size", [0, (0, 2), (2, 0)])
def test_no_gradient_of_an_empty_output(output_size):
    """An empty output can be computed, but not differentiated: so it is in torch."""
    output = adaptive_avg_pool2d(X.clone().requires_grad_(), output_size)
    with pytest.raises(RuntimeError, match=r"_backward\(\): Expected grad_output to have non-zero size"):
        output.sum().backward()


def test_nothing_asserts():
    """An assert would vanish under ``python -O``, and say nothing where it stays."""
    for path in (PACKAGES / "numba_pool").rglob("*.py"):
        asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
        assert not asserts, f"{path}: assert in lines {asserts}"
