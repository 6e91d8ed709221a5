"""The CUDA kernels compiled to PTX, without a GPU: what the instructions must and must not be.

Where ``ptxas`` is at hand, it tells the registers and the spills too.
"""

import shutil

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")

from numba import cuda, types

from numba_pool.cuda.packs import pack_of
from numba_pool.cuda.ptx import (
    KINDS,
    PACK,
    assemble,
    census,
    compile_to_ptx,
    count,
    counts,
    make_kernel,
)

SUMS = {"float64": r"v2\.f64", "float32": r"v4\.f32", "float16": r"v4\.f32", "bfloat16": r"v4\.f32"}


def check_common(ptx):
    """Raise AssertionError if a kernel adds atomically, uses local memory or calls a function."""
    found = counts(ptx, "float32")
    assert not found["atomics"], "atomic"
    assert not found["local"], "local memory"
    assert not found["calls"], "call"


def check_packs(kind, dtype, ptx):
    """Raise AssertionError unless a kernel moves packs where packs were meant, and only there."""
    found = counts(ptx, dtype)
    assert bool(found["16-byte loads"]) == (kind in ("tiles", "strips", "pixels", "bundles")), "loads"
    assert bool(found["16-byte stores"]) == (kind in ("tiles", "pixels")), "stores"
    if kind == "tiles":
        assert count(rf"\bst\.shared\.{SUMS[dtype]}", ptx), "packs to shared memory"
        assert count(rf"\bld\.shared\.{SUMS[dtype]}", ptx), "packs from shared memory"
    if kind in ("strips", "pixels", "bundles"):
        assert not found["other loads"], "single loads"


def check_assembled(ptx, capability, most):
    """Raise AssertionError if ``ptxas`` needs more than `most` registers, or spills."""
    if shutil.which("ptxas") is None:
        pytest.skip("ptxas is not on the PATH: registers and spills not counted")
    found = assemble(ptx, capability, most)
    assert found.registers <= most
    assert not found.spills, f"spills: {found}"


def check_kernel(kind, dtype, backward, capability):
    kernel = make_kernel(kind, dtype, backward)
    ptx = compile_to_ptx(kernel.py_func, capability)
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    check_common(ptx)
    check_packs(kind, dtype, ptx)
    check_assembled(ptx, capability, kernel.targetoptions["max_registers"])


# The full table is 128 kernels; of them, every kernel, direction, type and capability comes at least once here.
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_instructions(kind, backward):
    check_kernel(kind, "float32", backward, (9, 0))


@pytest.mark.parametrize("kind", ["tiles", "strips", "pixels"])
def test_instructions_on_an_older_device(kind):
    check_kernel(kind, "bfloat16", False, (8, 0))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("dtype", list(PACK))
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_instructions_of_all(kind, backward, dtype, capability):
    check_kernel(kind, dtype, backward, capability)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_types_move_packs(dtype):
    ptx = compile_to_ptx(make_kernel("tiles", dtype, False).py_func, (9, 0))
    check_common(ptx)
    check_packs("tiles", dtype, ptx)


# --- kernels that are wrong, to show that the checks notice ---


def scatter(src, dst, n):
    sums = cuda.shared.array(1, types.float32)
    cuda.atomic.add(sums, 0, 1.0)


def test_an_atomic_is_noticed():
    with pytest.raises(AssertionError, match="atomic"):
        check_common(compile_to_ptx(scatter, (9, 0)))


def test_local_memory_is_noticed():
    store = pack_of("float32", 1).store

    def keep_locally(src, dst, n):
        values = cuda.local.array(64, types.float32)
        for i in range(n):
            values[(i * src) % 64] = i
        store(dst, 0, (values[n],))

    with pytest.raises(AssertionError, match="local memory"):
        check_common(compile_to_ptx(keep_locally, (9, 0)))


def test_single_loads_are_noticed():
    ptx = compile_to_ptx(make_kernel("pixels singly", "float32", False).py_func, (9, 0))
    with pytest.raises(AssertionError):
        check_packs("pixels", "float32", ptx)


def test_spills_are_noticed():
    ptx = compile_to_ptx(make_kernel("pixels", "float32", False).py_func, (9, 0))
    with pytest.raises(AssertionError, match="spills"):
        check_assembled(ptx, (9, 0), 32)


def test_the_census_counts_each_kernel_and_direction():
    rows = list(census(("bundles",)))
    assert [(row["kernel"], row["direction"]) for row in rows] == [("bundles", "forward"), ("bundles", "backward")]


def test_without_ptxas_the_census_goes_on(monkeypatch):
    monkeypatch.setenv("PATH", "")
    row = next(census(("bundles",)))
    assert row["registers"] is row["spills"] is None
    assert row["16-byte loads"]
