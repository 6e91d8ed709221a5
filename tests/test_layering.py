"""Data flows one way through the rooms of the package: read from the imports, without importing anything."""

import ast
import re

import pytest
from helpers import PACKAGES

# A room imports only rooms that come later in this list.
ROOMS = [
    "__init__",
    "modules",
    "functional",
    "config",
    "_autograd",
    "_library",
    "_dispatch",
    "_validation",
    "_cuda_bridge",
    "_quick",
    "_dlpack",
    "kernels.cpu",
    "kernels.simd",
    "kernels.cuda",
    "kernels.cuda_memory",
    "_threads",
    "_cache",
    "reference",
    "windows",
]
# The version's single source is the package itself.
EXCEPTIONS = {("config", "__init__")}

# Who may import what from outside, where not everybody may. A name stands for all that begins with it.
OUTSIDE = {
    "torch": {
        "modules",
        "functional",
        "config",
        "_autograd",
        "_library",
        "_dispatch",
        "_validation",
        "_dlpack",
        "_quick",
        "_cuda_bridge",
    },
    "torch.utils.dlpack": {"_dlpack"},
    "numba": {
        "config",
        "_cache",
        "_cuda_bridge",
        "_dlpack",
        "_quick",
        "kernels.cpu",
        "kernels.simd",
        "kernels.cuda",
        "kernels.cuda_memory",
    },
    "llvmlite": {"_dlpack", "_quick", "kernels.simd", "kernels.cuda_memory"},
}


def sources():
    """Return the source of every room, the benchmark's aside."""
    folder = PACKAGES / "numba_pool"
    files = [*folder.glob("*.py"), *folder.glob("kernels/*.py")]
    names = {file: ".".join(file.relative_to(folder).with_suffix("").parts) for file in files}
    return {name: file.read_text() for file, name in names.items() if name != "kernels.__init__"}


def imports(room, source):
    """Yield the modules that a room's source imports, those of the package as rooms, with a leading dot."""
    parents = ["numba_pool", *room.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parents[: len(parents) - node.level + 1] if node.level else [])
            module = ".".join(part for part in (base, node.module) if part)
            found = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            yield re.sub(r"^numba_pool\b", "", name) or ".__init__"


def room_of(name):
    """Return the room that an imported name of the package belongs to."""
    parts = name.strip(".").split(".")
    rooms = [".".join(parts[:length]) for length in (2, 1) if ".".join(parts[:length]) in ROOMS]
    return rooms[0] if rooms else "__init__"


def violations(sources):
    """Return the imports that go against the flow, as sentences."""
    found = []
    for room, source in sources.items():
        for name in imports(room, source):
            if name.startswith("."):
                target = room_of(name)
                if (room, target) not in EXCEPTIONS and ROOMS.index(target) <= ROOMS.index(room):
                    found.append(f"{room} imports {target}")
            found += [
                f"{room} imports {name}"
                for outside, allowed in OUTSIDE.items()
                if (name == outside or name.startswith(outside + ".")) and room not in allowed
            ]
    return found


def test_every_room_has_its_place():
    assert sorted(sources()) == sorted(ROOMS)


def test_data_flows_one_way():
    assert violations(sources()) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("kernels.cpu", "import torch"),
        ("kernels.cpu", "from torch.nn import functional"),
        ("kernels.cpu", "from .. import _dispatch"),
        ("kernels.simd", "from .cpu import PIECE"),
        ("windows", "from numba_pool import reference"),
        ("windows", "import numba_pool._dlpack"),
        ("functional", "from .modules import AdaptiveAvgPool2d"),
        ("functional", "from . import __version__"),
        ("functional", "def f():\n    from .modules import AdaptiveAvgPool2d"),
        ("_dispatch", "from torch.utils.dlpack import from_dlpack"),
        ("_validation", "import numba.core"),
    ],
)
def test_an_import_against_the_flow_is_found(room, line):
    assert len(violations({room: line})) == 1
