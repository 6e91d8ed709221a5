"""How tensors reach compiled code, with torch's C functions for it and without."""

import numba
import pytest
import torch
from helpers import DTYPES, spawn

from numba_pool import _dlpack


@numba.njit
def values_of(memory):
    """Read the whole of a flat array, in order."""
    return [memory[i] for i in range(memory.size)]


def compiled_for(dtype):
    """Return `values_of` as the kernels are called: compiled for tensors of a dtype."""
    return values_of.compile((_dlpack.MEMORY[dtype],))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_code_reads_a_tensor_in_the_order_of_memory(dtype, memory_format):
    tensor = torch.randn(3, 2, 5, 4).to(dtype).contiguous(memory_format=memory_format)[1:].requires_grad_()
    in_order = tensor if memory_format is torch.contiguous_format else tensor.permute(0, 2, 3, 1)
    bits = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}.get(dtype, dtype)
    assert compiled_for(dtype)(tensor) == in_order.detach().view(bits).flatten().tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", [*DTYPES, torch.int16, torch.int32])
def test_another_dtype_is_refused(dtype, other):
    if other is not dtype:
        with pytest.raises(TypeError, match=f"expected a tensor of {dtype}"):
            compiled_for(dtype)(torch.zeros(3, dtype=other))


def test_what_is_no_tensor_is_refused():
    with pytest.raises(RuntimeError):
        compiled_for(torch.float32)([1.0, 2.0])


# What torch before 2.10 lacks is taken away before the package looks for it.
WITHOUT_EXCHANGE = """
import sys, pytest, torch
if sys.argv[1] == "without":
    torch.Tensor.__dlpack_c_exchange_api__ = None
from numba_pool import _dlpack, adaptive_avg_pool2d
assert (_dlpack._describe is _dlpack._describe_by_capsule) == (sys.argv[1] == "without")

torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 9, 8).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        y = adaptive_avg_pool2d(x, (4, 3))
        y.backward(torch.randn(y.shape).to(dtype))
        print(*(bits.item() for t in (y, x.grad) for bits in t.double().view(torch.int64).flatten()))
assert _dlpack.address(x) == x.data_ptr()

def interrupted(tensor):
    raise KeyboardInterrupt

if sys.argv[1] == "without":
    _dlpack.to_dlpack = interrupted
    with pytest.raises(SystemError):  # an error of whatever kind: nothing may be read
        adaptive_avg_pool2d(x.detach(), (4, 3))
    with pytest.raises(RuntimeError, match="cannot describe"):
        _dlpack.address(x)
"""


def test_without_the_exchange_api_the_bits_are_the_same():
    results = spawn(WITHOUT_EXCHANGE, "without")
    assert len(results.split()) == 8 * (2 * 3 * 4 * 3 + 2 * 3 * 9 * 8)
    assert results == spawn(WITHOUT_EXCHANGE, "with")
