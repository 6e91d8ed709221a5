"""What the CUDA kernels are compiled to: instructions and registers, counted on any machine, without a GPU.

Numba-CUDA must be installed, and the simulator off; ``ptxas`` tells registers and spills, where it is installed.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from numba import cuda, types

from .kernels import KERNELS
from .limits import full_width

KINDS = ("tiles", "strips", "strips singly", "pixels", "pixels singly", "bundles", "bundles singly", "finish")
# A pack of 16 bytes, as PTX moves it.
PACK = {"float64": r"v2\.f64", "float32": r"v4\.f32", "float16": r"v4\.[ub]32", "bfloat16": r"v4\.[ub]32"}


class Assembled(NamedTuple):
    """What ``ptxas`` says of a kernel.

    Parameters
    ----------
    registers : int
        Of a thread.
    spills : int
        Bytes of registers that are written to memory and read back.
    shared_bytes : int
        Shared memory of a block.
    """

    registers: int
    spills: int
    shared_bytes: int


def make_kernel(kind, dtype, backward):
    """Return a kernel of the package, not yet compiled.

    Parameters
    ----------
    kind : str
        One of `KINDS`; the kernels named ``singly`` move one element at a time.
    dtype : str
        ``"float64"``, ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    backward : bool
        Which direction.
    """
    name, _, singly = kind.partition(" ")
    options = () if name in ("tiles", "finish") else (1 if singly else full_width(dtype),)
    return KERNELS[name](dtype, backward, *options)


def compile_to_ptx(function, capability=(9, 0)):
    """Compile a kernel's Python function, whose arguments are integers, for a compute capability; return its PTX."""
    arguments = (types.int64,) * function.__code__.co_argcount
    return cuda.compile_ptx(function, types.void(*arguments), cc=capability)[0]


def count(pattern, ptx):
    """Return how often a regular expression matches."""
    return len(re.findall(pattern, ptx))


def find(pattern, text):
    """Return the groups of the first match."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern!r} in the text: {text[:200]!r}")
    return match.groups()


def assemble(ptx, capability=(9, 0), most=64):
    """Let ``ptxas`` assemble PTX with at most so many registers a thread; return what it says, or None without it.

    Raises
    ------
    subprocess.CalledProcessError
        If ``ptxas`` fails.
    """
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        return None
    # Numba's compiler may be newer than ptxas, and write a version that ptxas does not know; nothing new is used.
    newest = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = map(int, find(r"release (\d+)\.(\d+)", newest))
    known = f"{major - 4}.{minor}"
    (written,) = find(r"\.version (\d+\.\d+)", ptx)
    if float(written) > float(known):
        ptx = ptx.replace(f".version {written}", f".version {known}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch=sm_{capability[0]}{capability[1]}", f"-maxrregcount={most}", str(source)]
        command += ["-o", str(Path(folder, "kernel.cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = find(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    shared = re.search(r"(\d+) bytes smem", said)
    return Assembled(
        int(find(r"Used (\d+) registers", said)[0]), int(stores) + int(loads), int(shared[1]) if shared else 0
    )


def counts(ptx, dtype):
    """Return what a kernel's PTX consists of, as far as it decides how the kernel meets memory.

    Parameters
    ----------
    ptx : str
        A compiled kernel.
    dtype : str
        The type of its elements.

    Returns
    -------
    dict of str to int
        How many global loads and stores move 16 bytes and how many move less, and how often the kernel adds atomically,
        uses local memory, or calls a function.
    """
    packs = {op: count(rf"\b{op}\.global\S*\.{PACK[dtype]}", ptx) for op in ("ld", "st")}
    return {
        "16-byte loads": packs["ld"],
        "other loads": count(r"\bld\.global\b", ptx) - packs["ld"],
        "16-byte stores": packs["st"],
        "other stores": count(r"\bst\.global\b", ptx) - packs["st"],
        "atomics": count(r"\b(?:atom|red)\.", ptx),
        "local": count(r"\.local\b", ptx),
        "calls": count(r"\bcall\b", ptx),
    }


def census(kinds=("tiles", "strips", "pixels", "bundles"), dtype="float32", capability=(9, 0)):
    """Compile kernels and yield what they consist of: a dict for each kernel and direction.

    Their keys are those of `counts`, and ``"registers"``, ``"spills"`` and ``"shared bytes"``, which are None without
    ``ptxas``.
    """
    for kind in kinds:
        for backward in (False, True):
            kernel = make_kernel(kind, dtype, backward)
            ptx = compile_to_ptx(kernel.py_func, capability)
            assembled = assemble(ptx, capability, kernel.targetoptions["max_registers"]) or (None, None, None)
            yield {
                "kernel": kind,
                "direction": "backward" if backward else "forward",
                **counts(ptx, dtype),
                **dict(zip(("registers", "spills", "shared bytes"), assembled, strict=True)),
            }
