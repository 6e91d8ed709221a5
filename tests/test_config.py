"""What the package says of itself, and compiling ahead of the first call."""

import platform
import re

import numba
import numpy as np
import pytest
import torch
from helpers import DTYPES, spawn

import numba_pool
from numba_pool.cuda import launch


def printed_config(capsys):
    """Return what `show_config` prints, line by line."""
    numba_pool.show_config()
    return dict(
        re.split(r" {1,}(?! )", line, maxsplit=1)
        for line in re.sub(r"(CPU|threading) ", r"\1_", capsys.readouterr().out).splitlines()
    )


def test_show_config(capsys):
    numba_pool.adaptive_avg_pool2d(torch.ones(8, 32, 64, 64), 7)
    shown = printed_config(capsys)
    versions = {
        "numba_pool": numba_pool.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
    }
    assert shown.items() >= versions.items()
    assert (
        shown["CPU_threads"] == f"{torch.get_num_threads()} of torch, {numba.config.NUMBA_NUM_THREADS} in Numba's pool"
    )
    assert re.match("omp|tbb|workqueue|chosen at the first parallel call", shown["threading_layer"])
    assert re.match("yes: .+" if torch.cuda.is_available() else "no: .+", shown["CUDA"])


def test_show_config_tells_why_there_is_no_cuda(capsys, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert printed_config(capsys)["CUDA"] == f"no: torch {torch.__version__} finds no usable NVIDIA GPU"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert printed_config(capsys)["CUDA"] == "no: this build of torch has no CUDA"


def test_show_config_tells_whether_numba_cuda_works(capsys, monkeypatch):
    """A GPU alone is not enough: numba-cuda must be there, and load."""

    def missing():
        raise ImportError("numba_pool needs numba-cuda for CUDA tensors")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Imagined")
    for load, expected in (
        (missing, "no: numba_pool needs numba-cuda for CUDA tensors"),
        (lambda: None, "yes: NVIDIA Imagined, CUDA 13.0"),
    ):
        monkeypatch.setattr(launch, "load_kernels", load)
        assert printed_config(capsys)["CUDA"] == expected


def test_the_threading_layer_is_named_once_it_is_chosen():
    printed = spawn(
        "import torch, numba_pool\n"
        "numba_pool.show_config()\n"
        "torch.set_num_threads(2)\n"
        "numba_pool.adaptive_avg_pool2d(torch.ones(8, 32, 64, 64), 7)\n"
        "numba_pool.show_config()",
        NUMBA_THREADING_LAYER="workqueue",
    )
    assert re.findall("threading layer  (.*)", printed) == [
        "chosen at the first parallel call (NUMBA_THREADING_LAYER is 'workqueue')",
        "workqueue",
    ]


def test_public_names():
    assert sorted(numba_pool.__all__) == numba_pool.__all__
    for name in numba_pool.__all__:
        assert getattr(numba_pool, name).__doc__


COUNT_COMPILATIONS = """
import torch, numba_pool
from numba.core import event

def compilations(work):
    with event.install_recorder("numba:compile") as recorder:
        work()
    return sum(e.is_end for _, e in recorder.buffer)

SIZES = [
    ((2, 3, 9, 8), (2, 3)),
    ((2, 3, 9, 8), 1),
    ((8, 32, 56, 57), (7, 9)),
    ((1, 2, 900, 901), (1, 2)),
    ((2, 1, 300, 300), 1),
    ((2, 3, 4, 5), (17, 90)),
    ((1, 8, 3, 2), (500, 300)),
    ((4, 4, 1, 7), (1, 3)),
    ((64, 32, 7, 7), 5),
]

def pool():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for shape, size in 3 * SIZES:
            x = torch.ones(shape).contiguous(memory_format=memory_format).requires_grad_()
            y = numba_pool.adaptive_avg_pool2d(x, size)
            y.backward(torch.ones_like(y))

torch.set_num_threads(2)
print(compilations(numba_pool.precompile), compilations(pool))
"""


@pytest.mark.slow
def test_after_precompile_nothing_is_left_to_compile(tmp_path):
    before, after = map(int, spawn(COUNT_COMPILATIONS, NUMBA_CACHE_DIR=tmp_path).split())
    assert before > 0
    assert after == 0
    # And the next process finds everything in the cache.
    assert spawn(COUNT_COMPILATIONS, NUMBA_CACHE_DIR=tmp_path).split() == ["0", "0"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precompile_takes_every_dtype(dtype):
    numba_pool.precompile([dtype], [torch.channels_last])


def test_precompile_refuses_what_cannot_be_pooled():
    with pytest.raises(NotImplementedError, match="'Long'"):
        numba_pool.precompile([torch.int64])
