"""The layer beside other users of the process and the machine: threads, forks, signals, other ranks; and memory."""

import gc
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import weakref
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, spawn
from torch.testing import assert_close

from numba_pool import AdaptiveAvgPool2d, adaptive_avg_pool2d
from numba_pool.reference import forward as exact_forward

posix = pytest.mark.skipif(os.name != "posix", reason="forks and signals are POSIX")

# Large enough that two threads share it.
SHAPE, OUTPUT = (4, 16, 64, 48), (7, 5)

# What each process of its own starts with. A forked child must not enter torch's own pool of threads: it hangs there.
# So NumPy computes all that is not ours. Whoever hangs all the same is ended.
PRELUDE = f"""
import faulthandler, os, signal, sys, threading
import numpy as np, torch
faulthandler.dump_traceback_later(100, exit=True)
os.register_at_fork(after_in_child=lambda: signal.alarm(60))
torch.set_num_threads(2)
from numba_pool import adaptive_avg_pool2d, reference
x = np.random.default_rng(0).random({SHAPE}, dtype=np.float32)
expected = reference.forward(x.astype(np.float64), {OUTPUT})
ones = np.ones(expected.shape, np.float32)
gradient = reference.backward(ones.astype(np.float64), {SHAPE[-2:]})

def step(factor=1.0):
    leaf = torch.from_numpy(x * np.float32(factor)).requires_grad_()
    output = adaptive_avg_pool2d(leaf, {OUTPUT})
    output.backward(torch.from_numpy(ones))
    np.testing.assert_allclose(output.detach().numpy(), expected * factor, rtol=1e-5)
    np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-5)
    return factor

def in_parallel():
    import numba
    step()
    return numba.threading_layer()
"""


def run(code, **environment):
    """Run code after the prelude in a process of its own."""
    return spawn(PRELUDE + textwrap.dedent(code), OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2", **environment)


def layers():
    """Return the threading layers that Numba finds here."""
    found = ["workqueue"]
    if importlib.util.find_spec("numba.np.ufunc.omppool"):
        found.append("omp")
    if importlib.util.find_spec("numba.np.ufunc.tbbpool"):
        found.append("tbb")
    return found


EIGHT_THREADS = """
failures, start = [], threading.Barrier(8)
def work(n):
    try:
        start.wait()
        for i in range(40):
            step(float(n + 1))
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not failures, failures
print(in_parallel())
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_eight_threads_at_once(layer):
    """workqueue would end the process if two threads entered it."""
    if layer not in layers():
        pytest.skip(f"this build of Numba has no {layer}")
    try:
        assert run(EIGHT_THREADS, NUMBA_THREADING_LAYER=layer).split()[-1] == layer
    except AssertionError as error:
        if "No threading layer could be loaded" in str(error):
            pytest.skip(f"the library behind {layer} is not on this machine")
        raise


def test_threads_see_the_same_bits():
    """A thread that finds the pool taken computes alone, to the same bits."""
    x = torch.randn(SHAPE)
    expected = adaptive_avg_pool2d(x, OUTPUT)
    results: list[torch.Tensor] = []
    start = threading.Barrier(4)

    def work():
        start.wait()
        results.extend(adaptive_avg_pool2d(x, OUTPUT) for _ in range(25))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 100
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_other_parallel_kernels(layer):
    """A user's own parallel Numba function beside ours, in turns, and inside a Numba thread's reach."""
    if layer not in layers():
        pytest.skip(f"this build of Numba has no {layer}")
    run(
        """
        import numba
        @numba.njit(parallel=True)
        def total(a):
            s = 0.0
            for i in numba.prange(a.size):
                s += a[i]
            return s
        for _ in range(20):
            step()
            assert total(np.ones(100_000)) == 100_000
        numba.set_num_threads(1)
        step()
        assert numba.get_num_threads() == 1
        """,
        NUMBA_THREADING_LAYER=layer,
    )


FORKS = {
    "os.fork": """
        child = os.fork()
        if child == 0:
            try:
                step(); step(2.0)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    """,
    "fork of a fork": """
        child = os.fork()
        if child == 0:
            step()
            grandchild = os.fork()
            if grandchild == 0:
                step()
                os._exit(0)
            os._exit(os.waitpid(grandchild, 0)[1])
        assert os.waitpid(child, 0)[1] == 0
    """,
    "pool": """
        import multiprocessing
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(step, [1.0, 2.0, 3.0, 4.0]) == [1.0, 2.0, 3.0, 4.0]
    """,
    "DataLoader": """
        from torch.utils.data import DataLoader
        torch.multiprocessing.set_sharing_strategy("file_system")
        def collate(samples):
            torch.set_num_threads(2)  # a DataLoader's workers have one
            step()
            return adaptive_avg_pool2d(torch.from_numpy(np.stack(samples)), (2, 2))
        loader = DataLoader(list(x), batch_size=2, num_workers=2, collate_fn=collate, multiprocessing_context="fork")
        for epoch in range(2):
            pooled = torch.cat(list(loader)).numpy()
            np.testing.assert_allclose(pooled, reference.forward(x.astype(np.float64), (2, 2)), rtol=1e-5)
    """,
    "while another thread pools": """
        stop = threading.Event()
        def pool():
            while not stop.is_set():
                step()
        other = threading.Thread(target=pool)
        other.start()
        try:
            for _ in range(10):
                child = os.fork()
                if child == 0:
                    pooled = adaptive_avg_pool2d(torch.from_numpy(x), (7, 5)).numpy()
                    os._exit(0 if np.allclose(pooled, expected, rtol=1e-5) else 1)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            stop.set()
            other.join()
    """,
}


@posix
@pytest.mark.parametrize("layer", ["workqueue", "omp"])
@pytest.mark.parametrize("way", FORKS)
def test_fork_after_pooling_in_parallel(way, layer):
    """GNU OpenMP would end the child if it entered the parent's pool. The parent goes on in parallel."""
    if layer not in layers():
        pytest.skip(f"this build of Numba has no {layer}")
    code = f"layer = in_parallel()\n{textwrap.dedent(FORKS[way])}\nin_parallel()\nprint(layer)"
    assert run(code, NUMBA_THREADING_LAYER=layer).split()[-1] == layer


def _pool_of_ones(n):
    return adaptive_avg_pool2d(torch.full((8, 8, 64, 64), float(n)), 3).sum().item()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_fresh_workers(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    _pool_of_ones(1)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_pool_of_ones, [1, 2, 3]) == [576.0, 1152.0, 1728.0]


TRAINING = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from numba_pool import AdaptiveAvgPool2d
torch.set_num_threads(1)
world = int(os.environ.get("WORLD_SIZE", "1"))
rank = int(os.environ.get("RANK", "0"))
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(36, 4)).double()
x, y = torch.randn(6, 4, 3, 12, 11, dtype=torch.double), torch.randint(4, (6, 4))
model = net
if world > 1:
    dist.init_process_group("gloo")
    {wrap}
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
for step in range(6):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[step, rank::world]), y[step, rank::world]).backward()
    optimizer.step()
weights = [{gather}.detach() for p in model.parameters()]
if rank == 0:
    torch.save([w.clone() for w in weights], sys.argv[1])
if world > 1:
    dist.destroy_process_group()
"""
WRAPPERS = {
    "DDP": ("model = nn.parallel.DistributedDataParallel(net)", "p"),
    "FSDP": (
        "from torch.distributed.fsdp import fully_shard as f; model = f(net, mesh=dist.init_device_mesh('cpu', (2,)))",
        "(p.full_tensor() if world > 1 else p)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no distributed package")
def test_two_processes_train_as_one(wrapper, tmp_path):
    wrap, gather = WRAPPERS[wrapper]
    if wrapper == "FSDP" and not hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    script = tmp_path / "train.py"
    script.write_text(TRAINING.format(wrap=wrap, gather=gather))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    weights = []
    for name, launcher in (("two", torchrun), ("one", [])):
        command = [sys.executable, *launcher, str(script), str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        weights.append(torch.load(tmp_path / name))
    assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-12)


@posix
def test_interrupt_during_compilation(tmp_path):
    """Ctrl-C while a kernel is compiled: KeyboardInterrupt, and the next call compiles and computes."""
    out = run(
        """
        from numba.core import event
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it

        class Interrupt(event.Listener):
            def on_start(self, event):
                os.kill(os.getpid(), signal.SIGINT)
            def on_end(self, event):
                pass
        try:
            with event.install_listener("numba:compile", Interrupt()):
                step()
            print("not interrupted")
        except KeyboardInterrupt:
            print("interrupted")
        step()
        print(in_parallel(), "usable")
        """,
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert "not interrupted" not in out
    assert out.split()[0] == "interrupted"
    assert out.split()[-1] == "usable"


@posix
@pytest.mark.parametrize("threads", [1, 2])
def test_interrupt_during_a_long_call(threads, request):
    """Ctrl-C is noticed when the kernel returns; the pool is free again, and the next call is right."""
    # A shell's background process ignores it, and the loop below would never end.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(threads)
    x = torch.randn(8, 16, 512, 512)
    adaptive_avg_pool2d(x, 7)

    def interrupt():
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    for _ in range(3):
        thread = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            thread.start()
            while True:
                adaptive_avg_pool2d(x, 7)
        thread.join()
    from numba_pool import _threads

    assert not _threads._pool.locked()
    assert_close(adaptive_avg_pool2d(x, 7), F.adaptive_avg_pool2d(x, 7))


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


def test_forward_keeps_no_input():
    """The graph knows the input's shape alone; torch's own op keeps the input itself."""
    for f, kept in ((adaptive_avg_pool2d, False), (F.adaptive_avg_pool2d, True)):
        leaf = torch.randn(2, 3, 9, 8, requires_grad=True)
        inner = leaf * 2
        alive = weakref.ref(inner.untyped_storage())
        memory = weakref.ref(inner)
        output = f(inner, (3, 2))
        del inner
        gc.collect()
        if not kept:
            assert memory() is None
            assert alive() is None
        saved = [node for node in dir(output.grad_fn) if node.startswith("_saved_self")]
        assert bool(saved) == kept
        output.sum().backward()
        assert leaf.grad is not None


PEAK = """
import torch
import torch.nn.functional as F
from numba_pool import adaptive_avg_pool2d
torch.set_num_threads(1)

def step(n, middle):
    leaf = torch.ones(n, 16, 512, 512, requires_grad=True)
    output = FUNCTION(leaf * 2 if middle else leaf, SIZE)
    output.backward(torch.ones_like(output))

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

for middle in (False, True):
    step(1, middle)  # compiles
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    step(8, middle)
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is Linux's to tell")
@pytest.mark.parametrize("size", [1, 7, 256])
def test_peak_memory_of_a_training_step(size):
    """At most that of torch's own op, and an input that only the native graph keeps makes ours smaller."""
    peaks = {}
    for name, function in (("ours", "adaptive_avg_pool2d"), ("native", "F.adaptive_avg_pool2d")):
        code = PEAK.replace("FUNCTION", function).replace("SIZE", str(size))
        # What is freed goes back to the system, rather than to a heap whose state would decide what the peak is.
        peak_of = spawn(code, THP_MEM_ALLOC_ENABLE="0", MALLOC_MMAP_THRESHOLD_="65536").split()
        for middle, peak in zip((False, True), peak_of, strict=True):
            peaks[name, middle] = int(peak) / 1024
    slack = 8  # MiB, of 128 for each tensor of the input's size
    assert peaks["ours", False] <= peaks["native", False] + slack, peaks
    assert peaks["ours", True] <= peaks["native", True] + slack, peaks


def test_the_numbers_of_the_reference():
    """The prelude's comparison would notice a wrong number."""
    x = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    wrong = torch.from_numpy(exact_forward(x.astype(np.float64), OUTPUT)).float() * 1.001
    with pytest.raises(AssertionError):
        assert_close(adaptive_avg_pool2d(torch.from_numpy(x), OUTPUT), wrong)
