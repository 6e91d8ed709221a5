"""The window formula, exhaustively for small sizes."""

from fractions import Fraction
from itertools import pairwise
from math import ceil, floor

import numpy as np
import pytest

from numba_pool import pooling_windows, windows

SIZES = range(1, 49)


def windows_of(inputs, outputs):
    """Return the windows as a list of pairs of ints."""
    return list(zip(*(bounds.tolist() for bounds in pooling_windows(inputs, outputs)), strict=True))


@pytest.mark.parametrize("inputs", SIZES)
def test_windows_are_the_exact_formula(inputs):
    for outputs in SIZES:
        expected = [
            (floor(Fraction(o * inputs, outputs)), ceil(Fraction((o + 1) * inputs, outputs))) for o in range(outputs)
        ]
        assert windows_of(inputs, outputs) == expected


@pytest.mark.parametrize("inputs", SIZES)
def test_windows_cover_the_axis_and_touch_or_overlap_by_one(inputs):
    for outputs in SIZES:
        found = windows_of(inputs, outputs)
        assert (found[0][0], found[-1][1]) == (0, inputs)
        assert all(0 <= start < end <= inputs for start, end in found)
        for (start, end), (next_start, next_end) in pairwise(found):
            assert next_start in (end - 1, end)
            assert start <= next_start
            assert end <= next_end
        lengths = {end - start for start, end in found}
        assert max(lengths) - min(lengths) <= 1
        if inputs % outputs == 0:
            assert lengths == {inputs // outputs}


@pytest.mark.parametrize("inputs", SIZES)
def test_the_gather_formula_inverts_the_windows(inputs):
    """The outputs that read input `i` are the window of `i` with the sizes' roles swapped: what backward relies on."""
    for outputs in SIZES:
        readers = [
            [o for o, (start, end) in enumerate(windows_of(inputs, outputs)) if start <= i < end] for i in range(inputs)
        ]
        assert [list(range(*window)) for window in windows_of(outputs, inputs)] == readers


@pytest.mark.parametrize("outputs", [3, 2**31 - 1])
def test_large_sizes_do_not_overflow(outputs):
    inputs = 2**31 + 11
    o = np.int64(outputs - 1)
    assert (windows.start_index(o, outputs, inputs), windows.end_index(o, outputs, inputs)) == (
        (outputs - 1) * inputs // outputs,
        inputs,
    )


def test_no_outputs():
    for inputs in (0, 5):
        starts, ends = pooling_windows(inputs, 0)
        assert starts.shape == ends.shape == (0,)
        assert starts.dtype == ends.dtype == np.int64
        assert starts is not ends


@pytest.mark.parametrize(
    ("sizes", "message"), [((-1, 2), "non-negative"), ((2, -1), "non-negative"), ((0, 1), "empty axis")]
)
def test_wrong_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        pooling_windows(*sizes)
