"""How tensors reach compiled code, and come from it."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numba
import pytest
import torch
from helpers import DTYPES, spawn
from numba.core.compiler_lock import global_compiler_lock

from numba_pool import _dlpack, adaptive_avg_pool2d
from numba_pool.kernels.cpu import compiled


@numba.njit
def values_of(memory):
    """Read the whole of a flat array, in order."""
    return [memory[i] for i in range(memory.size)]


def compiled_for(dtype):
    """Return `values_of` as the kernels are called: compiled for tensors of a dtype."""
    return compiled(values_of, _dlpack.FLAT_TENSORS[dtype])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_code_reads_a_tensor_in_the_order_of_memory(dtype, memory_format):
    tensor = torch.randn(3, 2, 5, 4).to(dtype).contiguous(memory_format=memory_format)[1:].requires_grad_()
    in_order = tensor if memory_format is torch.contiguous_format else tensor.permute(0, 2, 3, 1)
    bits = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}.get(dtype, dtype)
    assert compiled_for(dtype)(tensor) == in_order.detach().view(bits).flatten().tolist()


@pytest.mark.parametrize(
    ("dtype", "other"), [pair for pair in product(DTYPES, (*DTYPES, torch.int16, torch.int32)) if pair[0] != pair[1]]
)
def test_another_dtype_is_refused(dtype, other):
    with pytest.raises(TypeError, match=f"expected a tensor of {dtype}"):
        compiled_for(dtype)(torch.zeros(3, dtype=other))


def test_a_tensor_without_memory_is_refused():
    released = torch.ones(2, 3, 8, 8)
    released.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="that has memory"):
        adaptive_avg_pool2d(released, 2)


def test_a_zero_tensor_is_pooled():
    zeros = torch._efficientzerotensor((2, 3, 8, 8))
    assert torch.equal(adaptive_avg_pool2d(zeros, 2), torch.zeros(2, 3, 2, 2))


def test_new_sizes_do_not_wait_for_the_compiler():
    """Whoever compiles anything holds Numba's lock, for seconds; a child that is forked meanwhile never gets it."""
    x = torch.randn(2, 3, 8, 8)
    adaptive_avg_pool2d(x, (3, 2))  # compiles
    with ThreadPoolExecutor(1) as pool, global_compiler_lock:
        assert pool.submit(adaptive_avg_pool2d, x, (2, 3)).result(timeout=60).shape == (2, 3, 2, 3)


def test_what_is_no_tensor_is_refused():
    with pytest.raises(RuntimeError):
        compiled_for(torch.float32)([1.0, 2.0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [((5,), False), ((2, 3, 5, 4), False), ((2, 3, 5, 4), True), ((2, 3, 1, 1), True), ((1, 1 << 20, 1, 2), True)],
)
def test_compiled_code_makes_tensors_as_torch_does(shape, dtype, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    like = torch.empty(shape, dtype=dtype, memory_format=memory_format)
    blank = _dlpack.Blank(shape, dtype, channels_last)
    one, other = blank.empty(), blank.empty()
    for new in (one, other):
        assert (new.shape, new.stride(), new.dtype, new.device) == (like.shape, like.stride(), dtype, like.device)
        assert new.data_ptr() % 64 == 0
        assert not new.requires_grad
    one.fill_(1)
    other.fill_(2)
    assert (one == 1).all()
    del other, blank
    assert (one == 1).all()


@pytest.mark.parametrize("elements", [1000, 1 << 21])
def test_memory_goes_back_with_its_tensor(elements):
    blank = _dlpack.Blank((elements,), torch.float32)
    views = [blank.empty().fill_(k)[k:] for k in range(3)]
    tracemalloc.start()
    try:
        kept = blank.empty()[1:]
        held, _ = tracemalloc.get_traced_memory()
        assert held >= 4 * elements
        del kept
        left, _ = tracemalloc.get_traced_memory()
        assert left < held - 4 * elements + 1000
    finally:
        tracemalloc.stop()
    assert all((view == k).all() for k, view in enumerate(views))


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20, 1 << 10), (1 << 40, 1 << 40, 4)])
def test_a_tensor_that_nobody_can_hold_is_an_error(shape):
    with pytest.raises(RuntimeError, match="cannot allocate a result of shape"):
        _dlpack.Blank(shape, torch.float32).empty()


def test_an_address_is_that_of_the_first_element():
    x = torch.randn(3, 4)
    assert _dlpack.address(x[1:]) == x.data_ptr() + 16


# A later version of the table leads back to the one that is known, and where there is none the package says so.
LATER_VERSION = """
import ctypes, pytest, torch
pointer_of, new = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_New
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
name = b"dlpack_exchange_api"
known = pointer_of(torch.Tensor.__dlpack_c_exchange_api__, name)

def offer(previous):
    table = (ctypes.c_uint64 * 7)(2, previous)  # version 2.0, and no functions
    torch.Tensor.__dlpack_c_exchange_api__ = new(ctypes.addressof(table), name, None)
    return table

table = offer(0)
with pytest.raises(ImportError, match="version 1 of DLPack's exchange API"):
    import numba_pool
table = offer(known)
import numba_pool
assert numba_pool.adaptive_avg_pool2d(torch.ones(1, 1, 4, 4), 2).sum() == 4
"""


def test_a_later_version_of_the_exchange_api_leads_back_to_the_known_one():
    spawn(LATER_VERSION)
