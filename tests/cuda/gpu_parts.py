"""The parts of ``gpu_report.py`` that are neither tests nor the benchmark: ``python tests/cuda/gpu_parts.py NAME``."""

import csv
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import distributions

import numpy as np
import torch

import numba_pool
from numba_pool.cuda.launch import load_kernels

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
DEVICE = "cpu" if SIMULATED else "cuda"

PACKAGES = {"torch", "numba", "numba-cuda", "llvmlite", "numpy"}
PACKAGES |= {"cuda-core", "cuda-bindings", "cuda-pathfinder", "nvidia-cuda-nvrtc", "nvidia-nvvm", "nvidia-nvjitlink"}

# N, C, (H, W, oH, oW), and whether the tensors are channels_last: every kernel in both directions, with little to do.
SMALL = [
    (2, 3, (13, 11, 6, 5), False),
    (2, 8, (13, 11, 6, 5), True),
    (1, 5, (3, 4, 8, 11), True),
    (1, 2, (3, 5, 8, 11), False),
    (1, 1, (9, 2000, 1, 2), False),
    (1, 1, (1, 2, 20, 1001), False),
    (1, 8, (20, 30, 1, 2), True),
    (1, 3, (30, 601, 1, 2), True),
    (1, 3, (1, 2, 30, 601), True),
]
REPEATED = [(8, 32, (57, 57, 7, 7), False), (8, 32, (57, 57, 7, 7), True), (1, 2, (1024, 1024, 3, 3), False)]
COUNTED = [(128, 256, (56, 56, 7, 7), False), (128, 256, (56, 56, 7, 7), True), (100, 256, (57, 57, 50, 50), False)]

# Time, bytes of the device's memory, and sectors of 32 bytes for each load and store of a warp.
METRICS = [
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    *(f"l1tex__t_{what}_pipe_lsu_mem_global_op_{op}.sum" for op in ("ld", "st") for what in ("requests", "sectors")),
]

OLDER_NUMPY = """
NumPy {numpy} no longer has np.row_stack, which numba-cuda 0.30 asks for. Give Python an older NumPy in a folder of its
own; the first command needs a network: without one, call it on another computer and bring the file.
    pip download --no-deps --only-binary=:all: --python-version {python} --platform manylinux_2_28_{cpu} 'numpy<2.5'
    pip install --no-index --no-deps --target older-numpy numpy-*.whl
    export PYTHONPATH=$PWD/older-numpy"""


def device():
    """Say what there is to work with, and whether the kernels run at all."""
    found = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    found |= {each.name: each.version for each in distributions() if each.name in PACKAGES}
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    try:
        if not SIMULATED:
            torch.cuda.init()
            gpu = torch.cuda.get_device_properties(0)
            print(gpu)
            found |= {"gpu": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "cuda": torch.version.cuda}
    except Exception as error:
        sys.exit(f"torch cannot use a GPU: {error}")
    try:
        load_kernels()
        for backward in (False, True):
            check_once(SMALL[0], backward)
    except Exception as error:
        advice = "" if hasattr(np, "row_stack") else OLDER_NUMPY
        python = ".".join(platform.python_version_tuple()[:2])
        sys.exit(f"{error!r}\n" + advice.format(numpy=np.__version__, python=python, cpu=platform.machine()))
    print(found.get("gpu", "Numba's simulator"))
    return found


def small():
    """Hold small cases in every direction and type to the reference; return how many."""
    # The simulator takes a second for what a GPU does in an instant.
    cases = [case for case in SMALL if not SIMULATED or max(case[2]) < 50]
    work = [(case, backward, "float32") for case in cases for backward in (False, True)]
    work += [(case, False, dtype) for case in cases[:2] for dtype in ("float64", "float16", "bfloat16")]
    for each in work:
        check_once(*each)
    print(f"{len(work)} results are right")
    return len(work)


def repeated():
    """Count the different results of equal calls, ours and native's; fail unless ours is one."""
    runs, cases, names = (3, SMALL[:2], ["numba_pool"]) if SIMULATED else (100, REPEATED, ["native", "numba_pool"])
    results = []
    for case in cases:
        for backward in (False, True):
            different = {}
            for name in names:
                call = bind(case, backward, name=name)
                different[name] = len({hash(numbers(call()).tobytes()) for _ in range(runs)})
            results.append({"call": describe(case, backward), "runs": runs, "different": different})
            print(results[-1], flush=True)
    if any(result["different"]["numba_pool"] != 1 for result in results):
        sys.exit("equal calls of numba_pool had different results")
    return results


def counters():
    """Let Nsight Compute count what one call of each function does to the memory."""
    # Kernels are chosen by their full names, which hold the package's, and told by the ranges that `calls` opens.
    # The clocks stay as they are.
    options = ["--kernel-name-base", "mangled", "-k", "regex:numba_pool|adaptive_average", "--clock-control", "none"]
    options += ["--nvtx", "--print-nvtx-rename", "kernel", "--metrics", ",".join(METRICS)]
    options += ["--csv", "--page", "raw", "--print-units", "base"]
    command = ["ncu", *options, sys.executable, __file__, "calls"]
    text = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
    print(text)
    table = csv.DictReader(line for line in text.splitlines() if line.startswith('"'))
    # A line of units follows the names; it has no number.
    rows = [{name: row.get(name) for name in ("Kernel Name", *METRICS)} for row in table if row.get("ID")]
    if not rows:
        sys.exit(f"ncu counted nothing; it said:\n{text[-1000:]}")
    print(f"{len(rows)} kernels counted")
    return rows


def calls():
    """Call what Nsight Compute is to count, each in a range with its name."""
    for case in COUNTED:
        for backward in (False, True):
            for name in ("native", "numba_pool"):
                call = bind(case, backward, name=name)
                with torch.cuda.nvtx.range(f"{name}: {describe(case, backward)}"):
                    call()


def describe(case, backward):
    """Name a call."""
    N, C, (H, W, oH, oW), channels_last = case
    layout = "channels_last" if channels_last else "contiguous"
    return f"{'backward' if backward else 'forward'}, {N}x{C}x{H}x{W} to {oH}x{oW}, {layout}"


def check_once(case, backward, dtype="float32"):
    """Hold one result to the reference."""
    from cuda_support import check, make_input

    values = make_input(source_shape(case, backward), dtype)
    check(numbers(bind(case, backward, dtype, values=values)()), values, case[2], dtype, backward)


def source_shape(case, backward):
    """Return the shape of what is pooled: an input, or the gradient of an output."""
    N, C, (H, W, oH, oW), _ = case
    return (N, C, oH, oW) if backward else (N, C, H, W)


def bind(case, backward, dtype="float32", name="numba_pool", values=None):
    """Return a function without arguments that pools once: on the GPU, or ours in the simulator."""
    N, C, (H, W, oH, oW), channels_last = case
    values = torch.rand(source_shape(case, backward), device=DEVICE) if values is None else torch.from_numpy(values)
    if SIMULATED:
        from cuda_support import pool

        return lambda: pool(values.numpy(), case[2], dtype, backward, channels_last)[0]
    function = (torch.nn.functional if name == "native" else numba_pool).adaptive_avg_pool2d
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    source = values.to(DEVICE, getattr(torch, dtype)).contiguous(memory_format=memory_format)
    if not backward:
        return lambda: function(source, (oH, oW))
    leaf = source.new_zeros(N, C, H, W).contiguous(memory_format=memory_format).requires_grad_()
    output = function(leaf, (oH, oW))
    return lambda: torch.autograd.grad(output, leaf, source, retain_graph=True)[0]


def numbers(result):
    """Return a result as an array of float64."""
    return result if SIMULATED else result.double().cpu().numpy()


if __name__ == "__main__":
    result = {part.__name__: part for part in (device, small, repeated, counters, calls)}[sys.argv[1]]()
    print("RESULT", json.dumps(result))
