"""The kernels where Python looks for mistakes: in development mode, with warnings as errors and a checked allocator."""

import pytest
from cpu_cases import CASES
from helpers import ROOT, spawn

# In development mode, Python tells of files that are never closed and checks what extensions do, at some cost. The
# debugging allocator looks for writes outside of Python's objects; the memory of tensors is not its own, and
# test_guard_pages.py looks after that.
STRICT = {"PYTHONDEVMODE": 1, "PYTHONMALLOC": "debug"}

COMPUTE = f"""
import gc, sys, warnings
import numpy, torch, torch.nn.functional as F
sys.path[:0] = [{str(ROOT / "tests/cpu")!r}, {str(ROOT / "tests")!r}]
unraisable = []
sys.unraisablehook = lambda failure: unraisable.append(repr(failure.exc_value))
assert sys.flags.dev_mode
import numba, numba.np.ufunc.parallel  # other packages may warn, and torch does, when they are imported
warnings.simplefilter("error")
from numba_pool import adaptive_avg_pool2d
from cpu_cases import CASES
torch.set_num_threads(2)

def results(pool, x, output_size):
    x = x.requires_grad_()
    output = pool(x, output_size)
    return output.detach(), torch.autograd.grad(output, x, torch.ones_like(output))[0]

for name, (N, C, H, W, oH, oW) in CASES.items():
    values = torch.rand(N, C, H, W, dtype=torch.float64)
    expected = results(F.adaptive_avg_pool2d, values, (oH, oW))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = values.detach().to(dtype).contiguous(memory_format=memory_format)
            for actual, exact in zip(results(adaptive_avg_pool2d, x, (oH, oW)), expected, strict=True):
                torch.testing.assert_close(actual.double(), exact, rtol=2e-2, atol=2e-3)
    print(name)
gc.collect()
assert not unraisable, unraisable
"""


@pytest.mark.slow
def test_nothing_warns_and_no_memory_is_harmed():
    assert spawn(COMPUTE, **STRICT).splitlines() == list(CASES)


HARM = """
import ctypes, warnings
memory = bytearray(1000)
address = ctypes.addressof((ctypes.c_char * len(memory)).from_buffer(memory))
ctypes.memset(address, 0, len(memory) + {beyond})
del memory
"""


@pytest.mark.parametrize("beyond", [0, 8])
def test_the_allocator_notices_a_write_outside(beyond):
    """Not one right behind the last byte, which Python keeps for a zero, but one behind that."""
    code = HARM.format(beyond=beyond)
    if beyond:
        with pytest.raises(AssertionError, match=r"bad trailing pad byte|bad ID"):
            spawn(code, **STRICT)
    else:
        spawn(code, **STRICT)
