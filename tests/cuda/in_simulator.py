"""The CUDA kernels in Numba's simulator, against the reference.

The simulator is chosen by an environment variable before Numba is imported, so these tests need a process of their own:
``test_simulator.py`` starts it, and so does ``NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda/in_simulator.py``.
"""

import numpy as np
import pytest
from cuda_support import SMALL, check, make_input, pool

from numba_pool.cuda import bundles, device, finish, pixels, strips, tiles
from numba_pool.cuda.jit import SIMULATED
from numba_pool.cuda.limits import LIMITS
from numba_pool.cuda.plan import choose

if not SIMULATED:
    raise RuntimeError("set NUMBA_ENABLE_CUDASIM=1 before Python starts")

# N, C, (H, W, oH, oW), and why.
CASES = {
    "divisible": (1, 2, (8, 12, 4, 3)),
    "overlapping": (2, 3, (7, 7, 3, 3)),
    "primes": (1, 1, (13, 11, 7, 5)),
    "global": (2, 3, (7, 7, 1, 1)),
    "identity-sized": (1, 2, (5, 6, 5, 6)),
    "output-larger": (1, 1, (3, 5, 8, 11)),
    "mixed": (1, 1, (12, 5, 5, 13)),
    "one-pixel": (2, 3, (1, 1, 4, 5)),
    "window-over-64": (1, 1, (70, 4, 1, 2)),
    "wide-window": (1, 1, (1, 130, 1, 2)),
    "wider-than-a-block": (1, 1, (2, 150, 1, 1)),
    "column": (1, 2, (40, 1, 7, 1)),
    "row-per-source": (1, 2, (2, 1, 6, 7)),
    "tiles-of-columns": (1, 1, (4, 60, 3, 35)),
    "shared-window": (1, 1, (25, 12, 1, 1)),
    "many-small-planes": (9, 2, (3, 3, 2, 2)),
    "one-row-to-several": (1, 2, (1, 16, 2, 2)),
    "several-rows-to-one-column": (1, 2, (4, 6, 2, 1)),
}


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name, backward, channels_last):
    N, C, sizes = CASES[name]
    values = make_input((N, C, *(sizes[2:] if backward else sizes[:2])), "float32")
    result, _ = pool(values, sizes, "float32", backward, channels_last)
    check(result, values, sizes, "float32", backward)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_every_type(dtype, backward, channels_last):
    for C, sizes in ((1, (7, 6, 3, 4)), (8, (4, 3, 2, 2)), (1, (20, 12, 1, 1))):
        values = make_input((1, C, *(sizes[2:] if backward else sizes[:2])), dtype)
        result, _ = pool(values, sizes, dtype, backward, channels_last)
        check(result, values, sizes, dtype, backward)


def test_half_types_sum_in_float32():
    # 2240 ones: a sum in float16 stops at 2048.
    result, _ = pool(np.ones((1, 1, 56, 40)), (1, 1, 56, 40), "float16", backward=True)
    assert result.item() == 2240


@pytest.mark.parametrize(("dtype", "shifts"), [("float32", (3, 1)), ("bfloat16", (0, 5))])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("C", "sizes"), [(1, (9, 7, 4, 3)), (1, (3, 4, 4, 9)), (1, (20, 12, 1, 2)), (8, (4, 3, 2, 2))])
def test_odd_offsets_have_the_same_bits(C, sizes, channels_last, dtype, shifts):
    for backward in (False, True):
        values = make_input((1, C, *(sizes[2:] if backward else sizes[:2])), dtype)
        plain, _ = pool(values, sizes, dtype, backward, channels_last)
        shifted, _ = pool(values, sizes, dtype, backward, channels_last, shifts)
        assert np.array_equal(plain, shifted)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("sizes", [(9, 7, 4, 3), (20, 12, 1, 2)])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_bits_do_not_depend_on_the_batch_or_the_device(sizes, channels_last, backward):
    values = make_input((2, 2, *(sizes[2:] if backward else sizes[:2])), "float32")
    together, _ = pool(values, sizes, "float32", backward, channels_last)
    alone, _ = pool(values[1:], sizes, "float32", backward, channels_last, processors=100)
    assert np.array_equal(together[1:], alone)


def test_nan_and_inf_stay_in_their_windows():
    values = make_input((1, 1, 13, 11), "float32")
    values[0, 0, 4, 3], values[0, 0, 9, 9] = np.nan, np.inf
    for channels_last in (False, True):
        for sizes in ((13, 11, 6, 5), (13, 11, 1, 2)):
            with np.errstate(invalid="ignore"):
                result, _ = pool(values, sizes, "float32", channels_last=channels_last)
                want = pool(np.nan_to_num(values, nan=0, posinf=0), sizes, "float32", channels_last=channels_last)[0]
            reached = np.zeros_like(values)
            reached[0, 0, 4, 3] = reached[0, 0, 9, 9] = 1
            clean, _ = pool(reached, sizes, "float32", channels_last=channels_last)
            assert np.array_equal(np.isfinite(result), clean == 0)
            assert np.array_equal(result[clean == 0], want[clean == 0])


def test_blocks_of_real_size():
    for C, sizes, channels_last in ((5, (7, 7, 2, 2), False), (40, (7, 7, 1, 1), True), (1, (40, 90, 3, 2), False)):
        values = make_input((1, C, *sizes[:2]), "float32")
        result, _ = pool(values, sizes, "float32", channels_last=channels_last, limits=LIMITS)
        check(result, values, sizes)


def test_the_cases_reach_every_kernel():
    seen = set()
    for N, C, sizes in CASES.values():
        for backward in (False, True):
            source, target = (sizes[2:], sizes[:2]) if backward else (sizes[:2], sizes[2:])
            for channels in (1, C):
                planes = N * C // channels
                launches, _ = choose("float32", backward, planes, *source, *target, channels, limits=SMALL)
                seen |= {launch.kernel for launch in launches}
    assert seen == {"tiles", "strips", "pixels", "bundles", "finish"}


# --- kernels that are wrong, to show that the checks notice ---


def cut_windows(o, size, other_size):
    """A window's end, but never more than 4 elements after its start: as a fixed loop would have it."""
    start = (o * other_size) // size
    return min(((o + 1) * other_size + size - 1) // size, start + 4)


def rounded_windows(o, size, other_size):
    """A window's end rounded down, as if windows never overlapped."""
    return max(((o + 1) * other_size) // size, (o * other_size) // size + 1)


def equal_windows(i, size, other_size):
    """A window's length as if all had the same."""
    return -(-other_size // size)


@pytest.mark.parametrize(
    ("name", "wrong", "backward"),
    [
        ("end_index", cut_windows, False),
        ("end_index", rounded_windows, False),
        ("end_index", rounded_windows, True),
        ("window_length", equal_windows, True),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_a_wrong_kernel_fails(monkeypatch, name, wrong, backward, channels_last):
    for module in (tiles, strips, pixels, bundles, finish, device):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, wrong)
    sizes = (23, 7, 3, 3)
    values = make_input((1, 2, *(sizes[2:] if backward else sizes[:2])), "float32")
    result, _ = pool(values, sizes, "float32", backward, channels_last)
    with pytest.raises(AssertionError):
        check(result, values, sizes, "float32", backward)


def test_a_kernel_that_forgets_an_element_fails():
    values = make_input((1, 1, 9, 8), "float32")
    result, _ = pool(values, (9, 8, 4, 3))
    result[0, 0, 3, 2] = np.nan
    with pytest.raises(AssertionError):
        check(result, values, (9, 8, 4, 3))
