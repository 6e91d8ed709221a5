"""How much memory the layer takes and keeps: of Python, of the process, and of its results."""

import gc
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import spawn

from numba_pool import AdaptiveAvgPool2d

# Large enough that two threads share it.
SHAPE, OUTPUT = (4, 16, 64, 48), (7, 5)


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _train(layer, x):
    x = x.requires_grad_()
    output = layer(x)
    output.backward(torch.ones_like(output))
    x.grad = None


def test_a_thousand_steps_leave_nothing():
    """Neither in Python's memory nor in the process's; sizes repeat, as in training."""
    layer = AdaptiveAvgPool2d(OUTPUT)
    x = torch.randn(SHAPE)
    small = torch.randn(1, 8, 8, 8)
    for _ in range(100):
        _train(layer, x)
        _train(layer, small)
    gc.collect()
    tracemalloc.start()
    try:
        before, resident = tracemalloc.get_traced_memory()[0], _resident() if os.path.exists("/proc/self/statm") else 0
        for _ in range(1000):
            _train(layer, x)
            _train(layer, small)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 32 * 2000  # less than the smallest object for each of the 2000 steps
    if resident:
        # A leak of one input a step would be 786 MB, of one output 9 MB.
        assert _resident() - resident < 4 << 20


PEAK = """
import sys
import torch
import torch.nn.functional as F
from numba_pool import adaptive_avg_pool2d
torch.set_num_threads(1)

def step(function, size, n, middle):
    leaf = torch.ones(n, 16, 512, 512, requires_grad=True)
    output = function(leaf * 2 if middle else leaf, size)
    output.backward(torch.ones_like(output))

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

for function in (adaptive_avg_pool2d, F.adaptive_avg_pool2d):
    for size in map(int, sys.argv[1:]):
        for middle in (False, True):
            step(function, size, 1, middle)  # compiles
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # from here on the peak counts
            before = status("VmRSS")
            step(function, size, 8, middle)
            print((status("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux tells the peak")
def test_peak_memory_of_a_training_step():
    """At most that of torch's own op, and an input that only the native graph keeps makes ours smaller."""
    sizes = (1, 7, 256)
    # What is freed goes back to the system, rather than to a heap whose state would decide what the peak is.
    environment = {"THP_MEM_ALLOC_ENABLE": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    peaks = [float(peak) for peak in spawn(PEAK, *sizes, **environment).split()]
    slack = 8  # MiB, of 128 for each tensor of the input's size
    ours, native = peaks[: len(peaks) // 2], peaks[len(peaks) // 2 :]
    assert len(ours) == len(native) == 2 * len(sizes)
    assert all(a <= b + slack for a, b in zip(ours, native, strict=True)), peaks


SIZES = """
import sys
import torch
from numba_pool import adaptive_avg_pool2d, cpu, pooling_windows
torch.set_num_threads(1)

if sys.argv[1] == "leaking":  # where every window begins, for every size that came
    kept, choose = {}, cpu.choose
    def choose_and_keep(planes, sH, sW, dH, dW, C, average):
        kept[sH, sW, dH, dW] = pooling_windows(sH, dH), pooling_windows(sW, dW)
        return choose(planes, sH, sW, dH, dW, C, average)
    cpu.choose = choose_and_keep

memory = torch.ones(1400 * 700)

def step(i):
    H, W = (1000 + i, 600 + i % 97) if i % 2 else (4, 100_000 + 7 * i)
    x = memory[: H * W].view(1, 1, H, W).requires_grad_()
    y = adaptive_avg_pool2d(x, (H // 2, W // 2 + i % 3))
    y.backward(torch.ones_like(y))
    x.grad = None

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

for i in range(30):
    step(i)
before = resident()
for i in range(30, 330):
    step(i)
print(resident() - before)
"""


def _growth(kind):
    # What is freed goes back to the system, so that growth is what is kept.
    return int(spawn(SIZES, kind, MALLOC_MMAP_THRESHOLD_="65536")) / 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux says how much memory is resident")
def test_three_hundred_sizes_leave_nothing():
    """Where the windows of each size begin and end would be 240 MB."""
    with ThreadPoolExecutor() as pool:
        growth, leak = pool.map(_growth, ("as it is", "leaking"))
    assert growth < 8
    assert leak > 80  # the check would notice
