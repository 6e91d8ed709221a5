"""The package as others install it: read-only, with a damaged or a full cache, without OpenMP, from a wheel."""

import ast
import compileall
import email
import itertools
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import PACKAGES, ROOT, spawn

import numba_pool

# Pool serially, on two threads, and backwards; print what is wrong, and each warning of ours.
COMPUTE = """
import warnings
import torch
import numba_pool
torch.set_num_threads(2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for shape in ((2, 3, 9, 8), (8, 32, 64, 64)):
        x = torch.randn(shape, requires_grad=True)
        y, expected = numba_pool.adaptive_avg_pool2d(x, 1), torch.nn.functional.adaptive_avg_pool2d(x, 1)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(*(torch.autograd.grad(p, x, torch.ones_like(y))[0] for p in (y, expected)))
print(*(str(w.message).partition(" (")[0] for w in caught if "numba_pool" in str(w.message)), sep="\\n")
"""
NOT_READ = "numba_pool: a cached kernel could not be read and is compiled again"
NOT_KEPT = "numba_pool: a compiled kernel could not be kept and will be compiled again by the next process"


@pytest.fixture
def copied(tmp_path):
    """Return a folder with a copy of the package that has compiled nothing yet."""
    shutil.copytree(PACKAGES / "numba_pool", tmp_path / "numba_pool", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory):
    """Return a cache folder that holds all that `COMPUTE` needs, and nothing else."""
    folder = tmp_path_factory.mktemp("warm")
    assert spawn(COMPUTE, NUMBA_CACHE_DIR=folder).strip() == ""
    return folder


def files_below(folder):
    """Return all files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_read_only_without_a_home(copied):
    """Nothing can be kept anywhere: permissions would not hold back root, but a file where a folder should be does."""
    for folder in {path.parent for path in (copied / "numba_pool").rglob("*.py")}:
        (folder / "__pycache__").touch()
    before = files_below(copied)
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR"), "/dev/null")
    assert spawn(COMPUTE, packages=copied, NUMBA_CACHE_DIR=None, **nowhere).strip() == ""
    assert files_below(copied) == before


def test_the_cache_is_used(warm_cache):
    count = (
        "from numba.core import event\n"
        "with event.install_recorder('numba:compile') as recorder:\n"
        f"    exec({COMPUTE!r})\n"
        "print(len(recorder.buffer))"
    )
    assert spawn(count, NUMBA_CACHE_DIR=warm_cache).split() == ["0"]


def truncated(content):
    return content[: len(content) // 2]


def emptied(content):
    return b""


def scrambled(content):
    """Flip bits in the middle third."""
    third = len(content) // 3
    return content[:third] + bytes(byte ^ 0x55 for byte in content[third : 2 * third]) + content[2 * third :]


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "damages"), [(".nbi", (scrambled, truncated)), (".nbc", (truncated, emptied))])
def test_a_damaged_cache_is_compiled_again(suffix, damages, warm_cache, tmp_path):
    """The files of every function are damaged in one way or the other, and each function costs one warning.

    An index has the suffix nbi, and data nbc.
    """
    folder = shutil.copytree(warm_cache, tmp_path / "damaged")
    functions = [path.with_suffix("") for path in files_below(folder) if path.suffix == ".nbi"]
    assert len(functions) >= len(damages)
    for function, damage in zip(functions, itertools.cycle(damages)):
        for path in function.parent.glob(f"{function.name}*{suffix}"):
            path.write_bytes(damage(path.read_bytes()))
    assert spawn(COMPUTE, NUMBA_CACHE_DIR=folder).splitlines() == [NOT_READ] * len(functions)
    # It is whole again.
    assert spawn(COMPUTE, NUMBA_CACHE_DIR=folder).strip() == ""


@pytest.mark.slow
def test_a_full_disk_costs_a_warning(tmp_path):
    """No file may grow beyond a kilobyte: the system refuses to write, in the midst of a file, as a full disk does."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
    printed = spawn(limit + COMPUTE, NUMBA_CACHE_DIR=tmp_path, PYTHONDONTWRITEBYTECODE=1)
    assert set(printed.splitlines()) == {NOT_KEPT}
    assert not [path for path in files_below(tmp_path) if path.suffix == ".nbc"]


@pytest.mark.slow
def test_versions_that_share_a_cache_do_not_mix(copied, tmp_path_factory):
    """The new version takes the place of the old one and has the same kernels: only what they import is new."""
    cache = tmp_path_factory.mktemp("shared")
    simd = copied / "numba_pool/cpu/simd.py"
    old = simd.read_text()
    new = old.replace("builder.fadd(", "builder.fsub(")
    assert new != old
    pool = "import torch, numba_pool; print(numba_pool.adaptive_avg_pool2d(torch.ones(1, 4, 8), 1).item())"
    printed = []
    for text in (old, new):
        simd.write_text(text)
        printed.append(float(spawn(pool, packages=copied, NUMBA_CACHE_DIR=cache)))
    assert printed[0] == 1.0
    assert printed[1] != 1.0


def test_without_openmp(warm_cache):
    """Numba falls back on a thread pool of its own on a machine without libgomp and libtbb."""
    before = "import sys; sys.modules['numba.np.ufunc.omppool'] = sys.modules['numba.np.ufunc.tbbpool'] = None"
    code = f"{before}\n{COMPUTE}\nimport numba; print(numba.threading_layer())"
    assert spawn(code, NUMBA_CACHE_DIR=warm_cache).split() == ["workqueue"]


WHERE = """
assert numba_pool.__file__.startswith({where!r}) and numba_pool.__file__.endswith({suffix!r}), numba_pool.__file__
"""


@pytest.mark.slow
def test_from_compiled_files_alone(copied, tmp_path_factory):
    """No source can be read, neither by Numba nor for the stamp of the cache."""
    assert compileall.compile_dir(copied, legacy=True, quiet=1)
    for path in copied.rglob("*.py"):
        path.unlink()
    code = COMPUTE + WHERE.format(where=str(copied), suffix=".pyc")
    cache = tmp_path_factory.mktemp("cache")
    assert spawn(code, packages=copied, NUMBA_CACHE_DIR=cache).strip() == ""


@pytest.mark.slow
def test_from_a_zip_file(copied, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zipped")
    archive = shutil.make_archive(folder / "packages", "zip", copied)
    code = f"import sys; sys.path.insert(0, {archive!r})\n{COMPUTE}" + WHERE.format(where=archive, suffix=".py")
    assert spawn(code, packages=folder, NUMBA_CACHE_DIR=folder / "cache").strip() == ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel from a copy of the sources, without a network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "numba_pool", source / "numba_pool")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", source / "dist", source], check=True, timeout=300)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(metadata))
    ours = {name for name in names if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "numba_pool").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert ours == expected
    assert any(name.endswith("LICENSE") for name in names)
    assert about["Version"] == numba_pool.__version__
    declared = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["Requires-Python"] == declared["requires-python"]
    assert set(about.get_all("Provides-Extra")) == set(declared["optional-dependencies"])
    assert set(about.get_all("Requires-Dist")) >= set(declared["dependencies"])


@pytest.mark.slow
def test_the_wheel_installs_and_computes(wheel, tmp_path):
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path,
        wheel,
    ]
    subprocess.run(install, check=True, timeout=300)
    code = (
        "import torch, numba_pool\n"
        "from importlib.metadata import version\n"
        "print(version('numba_pool'), numba_pool.adaptive_avg_pool2d(torch.ones(1, 4, 8), 1).item())"
    )
    assert spawn(code, packages=tmp_path).split() == [numba_pool.__version__, "1.0"]


def test_the_sources_parse_on_the_oldest_python():
    for path in (PACKAGES / "numba_pool").rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 10))
