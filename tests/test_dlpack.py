"""How tensors reach compiled code, with torch's C functions for it and without."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numba
import pytest
import torch
from helpers import DTYPES, spawn
from numba.core.compiler_lock import global_compiler_lock

from numba_pool import adaptive_avg_pool2d, dlpack
from numba_pool.cpu.runtime import compiled


@numba.njit
def values_of(memory):
    """Read the whole of a flat array, in order."""
    return [memory[i] for i in range(memory.size)]


def compiled_for(dtype):
    """Return `values_of` as the kernels are called: compiled for tensors of a dtype."""
    return compiled(values_of, dlpack.FLAT_TENSORS[dtype]).entry_point


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
    released = torch.ones(3)
    released.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="that has memory"):
        compiled_for(torch.float32)(released)


def test_new_sizes_do_not_wait_for_the_compiler():
    """A thread that compiles holds Numba's lock for seconds; a child that is forked meanwhile never gets it."""
    x = torch.randn(2, 3, 8, 8)
    adaptive_avg_pool2d(x, (3, 2))  # compiles
    with ThreadPoolExecutor(1) as pool, global_compiler_lock:
        assert pool.submit(adaptive_avg_pool2d, x, (2, 3)).result(timeout=60).shape == (2, 3, 2, 3)


def test_what_is_no_tensor_is_refused():
    with pytest.raises((RuntimeError, TypeError)):  # torch's own, where it has the exchange API
        compiled_for(torch.float32)([1.0, 2.0])


# What torch before 2.10 lacks is taken away before the package looks for it.
WITHOUT_EXCHANGE = """
import sys, pytest, torch
if sys.argv[1] == "without":
    torch.Tensor.__dlpack_c_exchange_api__ = None
from numba_pool import dlpack, adaptive_avg_pool2d
assert (dlpack._describe is dlpack._describe_by_capsule) == (sys.argv[1] == "without")

torch.manual_seed(0)
for dtype, memory_format in (torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last):
    x = torch.randn(2, 3, 9, 8).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    y = adaptive_avg_pool2d(x, (4, 3))
    y.backward(torch.randn(y.shape).to(dtype))
    print(*(bits.item() for t in (y, x.grad) for bits in t.double().view(torch.int64).flatten()))
assert dlpack.address(x) == x.data_ptr()

def interrupted(tensor):
    raise KeyboardInterrupt

if sys.argv[1] == "without":
    dlpack.to_dlpack = interrupted
    with pytest.raises(TypeError, match="expected a tensor"):
        adaptive_avg_pool2d(x.detach(), (4, 3))
    with pytest.raises(RuntimeError, match="cannot describe"):
        dlpack.address(x)
"""


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API")
def test_without_the_exchange_api_the_bits_are_the_same():
    """Where there is a cache, one process runs what the other compiled."""
    results = spawn(WITHOUT_EXCHANGE, "without")
    assert len(results.split()) == 2 * (2 * 3 * 4 * 3 + 2 * 3 * 9 * 8)
    assert results == spawn(WITHOUT_EXCHANGE, "with")
