"""The CPU kernels on arrays with a page right before or behind them that cannot be read or written."""

import ctypes
import os
import signal

import pytest
from cpu_cases import CASES
from helpers import ROOT, spawn

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "mprotect"), reason="needs a system that protects pages"
)

# In a process of its own, since a fault ends it: which case was running is printed before.
PRELUDE = f"""
import ctypes, mmap, sys
import numpy as np, torch
sys.path[:0] = [{str(ROOT / "tests/cpu")!r}, {str(ROOT / "tests")!r}]
from cpu_cases import CASES, ENCODINGS, directions, in_memory_order, launch
from numba_pool import cpu, dlpack

protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

def guarded(size, dtype, behind):
    '''Return an array with a protected page right behind it, or right before it.'''
    nbytes = size * np.dtype(dtype).itemsize
    inner = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, inner + 2 * mmap.PAGESIZE), np.uint8)
    for page in (memory, memory[-mmap.PAGESIZE :]):
        assert protect(page.ctypes.data, mmap.PAGESIZE, 0) == 0, ctypes.get_errno()
    inside = memory[mmap.PAGESIZE : -mmap.PAGESIZE]
    return (inside[inner - nbytes :] if behind else inside[:nbytes]).view(dtype)
"""

CHECK = """
behind = sys.argv[1] == "behind"

# The sums of parts are memory of the package's own.
dlpack.FlatTensor.empty = lambda typ, size: torch.from_numpy(
    guarded(size, torch.empty(0, dtype=typ.tensor_dtype).numpy().dtype, behind)
)
cpu.GRAIN = 1

def check(case, encoding, channels_last, direction, source_size, size):
    values = np.random.default_rng(0).normal(0.5, 1.0, (*case[:2], *source_size))
    ordered, planes, C = in_memory_order(encoding.encode(values), channels_last)
    source = guarded(ordered.size, ordered.dtype, behind)
    source[:] = ordered.reshape(-1)
    expected = np.empty(case[0] * case[1] * size[0] * size[1], source.dtype)
    kernel = getattr(cpu, direction)
    launch(kernel, np.array(source), expected, planes, *case[2:], C, 1)
    for threads in (1, 2):
        result = guarded(expected.size, expected.dtype, behind)
        launch(kernel, source, result, planes, *case[2:], C, threads)
        assert result.tobytes() == expected.tobytes(), "other bits than without the pages"

for name, case in CASES.items():
    for encoding in ENCODINGS:
        for channels_last in (False, True):
            for direction, source_size, size in directions(case):
                print(name, encoding, channels_last, direction, file=sys.stderr)
                check(case, ENCODINGS[encoding], channels_last, direction, source_size, size)
    print(name)
"""


@pytest.mark.parametrize("place", ["before", "behind"])
def test_kernels_touch_nothing_outside(place):
    assert spawn(PRELUDE + CHECK, place).splitlines() == list(CASES)


OUTSIDE = """
import os, numba
from numba_pool.cpu.simd import load_scalar, store_scalar

@numba.njit
def read(array, i):
    return load_scalar(array, i)

@numba.njit
def write(array, i):
    store_scalar(array, i, np.float32(1))

for behind in (True, False):
    array = guarded(5000, np.float32, behind)
    for function in (read, write):
        function(array, 0), function(array, array.size - 1)
        child = os.fork()
        if child == 0:
            function(array, array.size if behind else -1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_an_access_outside_ends_the_process():
    assert spawn(PRELUDE + OUTSIDE).split() == [str(-signal.SIGSEGV)] * 4
