"""Data flows one way through the parts of the package: read from the imports, without importing anything.

A part is a folder, or a file beside them; a file in a folder may import its neighbors there.
"""

import ast
import re

import pytest
from helpers import PACKAGES, ROOT

import numba_pool

# What each part may import of the others. Only the benchmark is left out: it is a user of the public names.
MAY_IMPORT = {
    "__init__": {"config", "functional", "modules", "windows"},
    "config": {"__init__", "cpu", "cuda", "dlpack", "op"},  # the version's single source is the package itself
    "modules": {"functional"},
    "functional": {"op"},
    "op": {"cpu", "cuda", "dlpack"},
    "cuda": {"dlpack", "windows"},
    "cpu": {"reference", "windows"},
    "dlpack": set(),
    "reference": {"windows"},
    "windows": set(),
}

# Where torch may be imported, and where Numba: the two meet in one part only, and where versions are printed.
KNOWS_TORCH = {"modules", "functional", "op", "cuda/__init__", "cuda/launch"}
KNOWS_NUMBA = {"cpu", "cuda"}
KNOWS_BOTH = {"config", "dlpack"}
NUMBA = ("numba", "llvmlite")

# The one file that may use names that torch does not document, which begin with an underscore.
PRIVATE = "op/torch_private"


def sources():
    """Return the source of every file of the package, by its path without the suffix."""
    folder = PACKAGES / "numba_pool"
    return {path.relative_to(folder).with_suffix("").as_posix(): path.read_text() for path in folder.rglob("*.py")}


def part_of(file):
    """Return the part of a file."""
    return file.partition("/")[0]


def imports(file, source):
    """Yield what a file imports, as absolute dotted names."""
    parents = ["numba_pool", *file.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def begins_with(name, modules):
    """Return whether a dotted name is one of some modules, or in one."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def is_private(name):
    """Return whether one part of a dotted name begins with one underscore."""
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_names(file, source):
    """Yield names of torch that a file uses and torch does not document."""
    yield from (name for name in imports(file, source) if begins_with(name, ["torch"]) and is_private(name))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            # A tensor may go by any name, so in the part that knows torch every object is asked, but for a class's own.
            if is_private(node.attr) and (begins_with(name, ["torch"]) or part_of(file) == "op"):
                yield from () if begins_with(name, ["self", "cls"]) else (name,)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = ast.unparse(node.args[1]).strip("'\"")
            if is_private(name) and (begins_with(ast.unparse(node.args[0]), ["torch"]) or part_of(file) == "op"):
                yield name


def violations(sources):
    """Return what goes against the flow, as sentences."""
    found = []
    for file, source in sources.items():
        part, names = part_of(file), set(imports(file, source))
        ours = {name.removeprefix("numba_pool").strip(".") for name in names if begins_with(name, ["numba_pool"])}
        if part == "benchmark":
            ours = {name for name in ours if not name.startswith("benchmark")}
            found += [f"{file} imports {name}" for name in ours if name and name not in numba_pool.__all__]
            continue
        parts = {name.partition(".")[0] for name in ours}
        parts = {name if name in MAY_IMPORT else "__init__" for name in parts}
        allowed = MAY_IMPORT.get(part, set()) | ({part} if "/" in file else set())
        found += [f"{file} imports the part {other}" for other in sorted(parts - allowed)]
        of_torch = bool({file, part} & KNOWS_TORCH)
        if any(begins_with(name, ["torch"]) for name in names) and not of_torch and part not in KNOWS_BOTH:
            found.append(f"{file} imports torch")
        if any(begins_with(name, NUMBA) for name in names) and (
            of_torch if part in KNOWS_NUMBA else part not in KNOWS_BOTH
        ):
            found.append(f"{file} imports Numba")
        if file != PRIVATE:
            found += [f"{file} uses the private name {name}" for name in sorted(set(private_names(file, source)))]
    return found


def test_every_part_has_its_place():
    assert {part_of(file) for file in sources()} - {"benchmark"} == set(MAY_IMPORT)


def test_data_flows_one_way():
    assert violations(sources()) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("cpu/planes", "import torch"),
        ("cpu/__init__", "from torch.nn import functional"),
        ("cpu/__init__", "from ..op import execute"),
        ("cpu/runs", "from ..dlpack import address"),
        ("cpu/runs", "from ..cuda import launch"),
        ("cuda/tiles", "import torch"),
        ("cuda/launch", "from numba import cuda"),
        ("cuda/launch", "from ..cpu import simd"),
        ("windows", "from numba_pool import reference"),
        ("windows", "import numba_pool.dlpack"),
        ("dlpack", "from . import op"),
        ("dlpack", "import torch._C._functorch"),
        ("functional", "from .modules import AdaptiveAvgPool2d"),
        ("functional", "from . import __version__"),
        ("functional", "from .cpu import forward"),
        ("functional", "def f():\n    from .modules import AdaptiveAvgPool2d"),
        ("functional", "import torch\ntorch.compiler._is_compiling()"),
        ("op/execute", "from .. import windows"),
        ("op/execute", "from .. import functional"),
        ("op/checks", "import numba.core"),
        ("op/checks", "from llvmlite import ir"),
        ("op/checks", "from torch._C import _is_tracing"),
        ("op/execute", "def f(tensor):\n    return tensor._is_zerotensor()"),
        ("op/execute", "from torch.autograd import forward_ad\ngetattr(forward_ad, '_current_level', 0)"),
        ("benchmark/cases", "from ..op import execute"),
        ("benchmark/cases", "from numba_pool.cpu.simd import LANES"),
    ],
)
def test_an_import_against_the_flow_is_found(file, line):
    assert len(violations({file: line})) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("benchmark/cases", "import numba_pool\nfrom numba_pool import pooling_windows\nfrom .timing import check"),
        ("cpu/lines", "from .simd import LANES\nfrom .. import windows\nfrom numba import prange"),
        ("op/torch_private", "from torch._C import _is_tracing"),
        ("op/library", "class A:\n    def f(self):\n        return self._x"),
        ("dlpack", "import torch, numba\narray._getvalue()"),
    ],
)
def test_an_import_with_the_flow_is_none(file, line):
    assert violations({file: line}) == []


# Names that begin with an underscore though they are documented: of named tuples, and of Numba's proxies of structures.
DOCUMENTED = {"_fields", "_getvalue"}


def foreign_names(sources):
    """Return the names with an underscore that a package uses and does not define."""
    used, own = set(), set(DOCUMENTED)
    for file, source in sources.items():
        used |= {part for name in imports(file, source) for part in name.split(".") if is_private(part)}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                stored_in_self = ast.unparse(node) == f"self.{node.attr}" and not isinstance(node.ctx, ast.Load)
                (own if stored_in_self else used).add(node.attr)
            elif isinstance(node, ast.keyword) and node.arg:
                used.add(node.arg)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                used.add(ast.unparse(node.args[1]).strip("'\""))
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
    return {name for name in used - own if is_private(name)}


def listed_names():
    """Return the words in code font of the table of private names."""
    section = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Private names")[2].partition("\n## ")[0]
    )
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return {word for row in rows for code in re.findall("`([^`]+)`", row) for word in re.findall(r"\w+", code)}


def test_private_names_are_listed():
    assert foreign_names(sources()) <= listed_names()


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch._C._nobody_lists_this()",
        "from numba.core._nobody import function",
        "njit(_nobody=True)",
        "getattr(dispatcher, '_nobody')",
        "self._cache._nobody = 1",
    ],
)
def test_a_private_name_that_is_not_listed_is_found(line):
    assert foreign_names({"cpu/runtime": line}) - listed_names()
