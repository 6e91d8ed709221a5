"""The CUDA kernels compiled to PTX, without a GPU: what the instructions must and must not be.

Where ``ptxas`` is at hand, it tells the registers and the spills too.
"""

import re
import shutil
import subprocess

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")

from numba import cuda, types

from numba_pool.cuda.kernels import KERNELS
from numba_pool.cuda.limits import full_width
from numba_pool.cuda.packs import pack_of

KINDS = ["tiles", "strips", "strips singly", "pixels", "pixels singly", "bundles", "bundles singly", "finish"]
# A pack of 16 bytes, as PTX moves it.
PACK = {"float64": r"v2\.f64", "float32": r"v4\.f32", "float16": r"v4\.[ub]32", "bfloat16": r"v4\.[ub]32"}
SUMS = {"float64": r"v2\.f64", "float32": r"v4\.f32", "float16": r"v4\.f32", "bfloat16": r"v4\.f32"}


def make_kernel(kind, dtype, backward):
    name, _, singly = kind.partition(" ")
    options = () if name in ("tiles", "finish") else (1 if singly else full_width(dtype),)
    return KERNELS[name](dtype, backward, *options)


def compile_to_ptx(function, capability):
    arguments = (types.int64,) * function.__code__.co_argcount
    return cuda.compile_ptx(function, types.void(*arguments), cc=capability)[0]


def count(pattern, ptx):
    return len(re.findall(pattern, ptx))


def find(pattern, text):
    """Return the groups of the first match, which there must be."""
    match = re.search(pattern, text)
    assert match, pattern
    return match.groups()


def check_common(ptx):
    """Raise AssertionError if a kernel adds atomically, uses local memory or calls a function."""
    assert not count(r"\b(atom|red)\.", ptx), "atomic"
    assert not count(r"\.local\b", ptx), "local memory"
    assert not count(r"\bcall\b", ptx), "call"


def check_packs(kind, dtype, ptx):
    """Raise AssertionError unless a kernel moves packs where packs were meant, and only there."""
    loads, stores = (count(rf"\b{op}\.global\.{PACK[dtype]}", ptx) for op in ("ld", "st"))
    assert bool(loads) == (kind in ("tiles", "strips", "pixels", "bundles")), "loads"
    assert bool(stores) == (kind in ("tiles", "pixels")), "stores"
    if kind == "tiles":
        assert count(rf"\bst\.shared\.{SUMS[dtype]}", ptx), "packs to shared memory"
        assert count(rf"\bld\.shared\.{SUMS[dtype]}", ptx), "packs from shared memory"
    if kind in ("strips", "pixels", "bundles"):
        assert not count(r"\bld\.global\.(?!v)", ptx), "single loads"


def check_assembled(ptx, capability, most, tmp_path):
    """Raise AssertionError if ``ptxas`` needs more than `most` registers, or spills."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("ptxas is not on the PATH: registers and spills not counted")
    source = tmp_path / "kernel.ptx"
    # Numba's compiler may be newer than ptxas, and write a version that ptxas does not know; nothing new is used.
    newest = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = map(int, find(r"release (\d+)\.(\d+)", newest))
    known = f"{major - 4}.{minor}"
    (written,) = find(r"\.version (\d+\.\d+)", ptx)
    if float(written) > float(known):
        ptx = ptx.replace(f".version {written}", f".version {known}")
    source.write_text(ptx)
    command = [ptxas, "-v", f"-arch=sm_{capability[0]}{capability[1]}", f"-maxrregcount={most}", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "kernel.cubin")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(find(r"Used (\d+) registers", done.stderr)[0]) <= most
    spilled = find(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spilled == ("0", "0"), f"spills: {spilled}"


def check_kernel(kind, dtype, backward, capability, tmp_path):
    kernel = make_kernel(kind, dtype, backward)
    ptx = compile_to_ptx(kernel.py_func, capability)
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    check_common(ptx)
    check_packs(kind, dtype, ptx)
    check_assembled(ptx, capability, kernel.targetoptions["max_registers"], tmp_path)


# The full table is 128 kernels; of them, every kernel, direction, type and capability comes at least once here.
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_instructions(kind, backward, tmp_path):
    check_kernel(kind, "float32", backward, (9, 0), tmp_path)


@pytest.mark.parametrize("kind", ["tiles", "strips", "pixels"])
def test_instructions_on_an_older_device(kind, tmp_path):
    check_kernel(kind, "bfloat16", False, (8, 0), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("dtype", list(PACK))
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_instructions_of_all(kind, backward, dtype, capability, tmp_path):
    check_kernel(kind, dtype, backward, capability, tmp_path)


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


def test_spills_are_noticed(tmp_path):
    ptx = compile_to_ptx(make_kernel("pixels", "float32", False).py_func, (9, 0))
    with pytest.raises(AssertionError, match="spills"):
        check_assembled(ptx, (9, 0), 32, tmp_path)
