"""The layer beside other users of the process and the machine: threads, forks, signals, other ranks."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import PACKAGES, spawn
from torch.testing import assert_close

from numba_pool import adaptive_avg_pool2d
from numba_pool.cpu import runtime
from numba_pool.reference import forward as exact_forward

posix = pytest.mark.skipif(os.name != "posix", reason="forks and signals are POSIX")

# Large enough that two threads share it.
SHAPE, OUTPUT = (4, 16, 64, 48), (7, 5)

# What each process of its own starts with. A forked child must not enter torch's own pool of threads: it hangs there.
# So NumPy computes all that is not ours. A process that hangs all the same is ended.
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


def _loads(layer):
    """Return whether Numba's threading layer is here, and the library behind it."""
    try:
        importlib.import_module({"omp": "numba.np.ufunc.omppool", "tbb": "numba.np.ufunc.tbbpool"}[layer])
    except ImportError:
        return False
    return True


# Numba always has workqueue.
LAYERS = [
    "workqueue",
    *(
        pytest.param(layer, marks=pytest.mark.skipif(not _loads(layer), reason=f"{layer} is not on this machine"))
        for layer in ("omp", "tbb")
    ),
]
each_layer = pytest.mark.parametrize("layer", LAYERS)


EIGHT_THREADS = """
failures, start = [], threading.Barrier(8)
def work(n):
    try:
        start.wait()
        for i in range(20):
            step(float(n + 1))
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not failures, failures
print(in_parallel())
"""


@each_layer
def test_eight_threads_at_once(layer):
    """workqueue would end the process if two threads entered it."""
    assert run(EIGHT_THREADS, NUMBA_THREADING_LAYER=layer).split() == [layer]


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


@each_layer
def test_torchs_number_of_threads_stays(layer):
    """Numba's pool has threads of its own; how many torch's ops use is the user's to say."""
    run(
        """
        for threads in (3, 1, 2):
            torch.set_num_threads(threads)
            in_parallel() if threads > 1 else step()
            assert torch.get_num_threads() == threads, torch.get_num_threads()
        """,
        NUMBA_THREADING_LAYER=layer,
    )


def test_many_threads_pool_tiny_tensors():
    """Nothing is shared but compiled code."""
    inputs = [torch.randn(1, planes, 8, 8) for planes in range(1, 9)]
    expected = [F.adaptive_avg_pool2d(x, 2) for x in inputs]

    def work(_):
        for _ in range(100):
            for x, y in zip(inputs, expected, strict=True):
                assert_close(adaptive_avg_pool2d(x, 2), y)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# A parallel function of somebody else's.
TOTAL = """
import numba
@numba.njit(parallel=True)
def total(a):
    s = 0.0
    for i in numba.prange(a.size):
        s += a[i]
    return s
"""


@each_layer
def test_other_parallel_kernels(layer):
    """A user's own parallel Numba function beside ours, in turns, and inside a Numba thread's reach."""
    code = """
        for _ in range(20):
            step()
            assert total(np.ones(100_000)) == 100_000
        numba.set_num_threads(1)
        step()
        assert numba.get_num_threads() == 1
    """
    run(
        TOTAL + textwrap.dedent(code),
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
@each_layer
def test_fork_after_pooling_in_parallel(layer):
    """GNU OpenMP would end the child if it entered the parent's pool. The parent goes on in parallel."""
    ways = "".join(f"print({way!r}, in_parallel(), flush=True)\n{textwrap.dedent(code)}" for way, code in FORKS.items())
    printed = run(f"{ways}\nin_parallel()", NUMBA_THREADING_LAYER=layer)
    assert printed.splitlines() == [f"{way} {layer}" for way in FORKS]


AFTER_ANOTHER = f"""
{TOTAL}
assert total(np.ones(100_000)) == 100_000

def ends(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

print(ends(step), ends(lambda: total(np.ones(100_000))), numba.threading_layer())
"""


@posix
@each_layer
def test_fork_after_another_parallel_function(layer):
    """The child of a process in which somebody else's Numba function has started the pool, and ours has not."""
    ours, theirs, used = run(AFTER_ANOTHER, NUMBA_THREADING_LAYER=layer).split()
    assert (ours, used) == ("0", layer)
    if layer == "omp":  # GNU OpenMP ends a child that enters its parent's pool
        assert theirs == str(-signal.SIGTERM)


WITHOUT_THE_ANSWER = """
from numba.np.ufunc import parallel
step()
del parallel._is_initialized
child = os.fork()
if child == 0:
    step()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@posix
@each_layer
def test_fork_where_numba_does_not_tell(layer):
    """Without the private name, no child enters a pool."""
    assert run(WITHOUT_THE_ANSWER, NUMBA_THREADING_LAYER=layer).split() == ["0"]


def _pool_of_ones(n):
    return adaptive_avg_pool2d(torch.full((8, 8, 64, 64), float(n)), 3).sum().item()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_fresh_workers(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    _pool_of_ones(1)
    with multiprocessing.get_context(method).Pool(1) as pool:
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
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
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
                adaptive_avg_pool2d(torch.from_numpy(x), 1)
            print("not interrupted")
        except KeyboardInterrupt:
            print("interrupted")
        mean = adaptive_avg_pool2d(torch.from_numpy(x), 1).numpy()
        np.testing.assert_allclose(mean, x.mean((2, 3), keepdims=True), rtol=1e-5)
        print("usable")
        """,
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert out.split() == ["interrupted", "usable"]


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
    assert not runtime._pool.locked()
    assert_close(adaptive_avg_pool2d(x, 7), F.adaptive_avg_pool2d(x, 7))


def test_the_numbers_of_the_reference():
    """The prelude's comparison would notice a wrong number."""
    x = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    wrong = torch.from_numpy(exact_forward(x.astype(np.float64), OUTPUT)).float() * 1.001
    with pytest.raises(AssertionError):
        assert_close(adaptive_avg_pool2d(torch.from_numpy(x), OUTPUT), wrong)
