"""From torch tensors to launches, as far as that goes without a GPU."""

import contextlib
import importlib
import pkgutil
import types

import pytest
import torch

import numba_pool.cuda
from numba_pool.cuda import launch
from numba_pool.cuda.plan import Launch


@pytest.mark.parametrize("dtype", list(launch.DTYPES))
def test_the_address_is_where_the_elements_begin(dtype):
    tensor = torch.zeros(5, 4, 3, dtype=dtype, requires_grad=True)
    for view in (tensor, tensor[1:], tensor[2:, 1:]):
        assert launch.address(view) == view.data_ptr()


class Kernels:
    """Stands for the kernels: compiles nothing, and notes what they would be launched with."""

    def __init__(self):
        self.calls = []
        self.context_of = contextlib.nullcontext

    def compiled(self, kernel, options, dtype, backward):
        return kernel, options, dtype, backward

    def run(self, *arguments):
        self.calls.append(arguments)


def use_kernels(monkeypatch, kernels):
    """Let CPU tensors be launched with `kernels`."""
    monkeypatch.setattr(launch, "load_kernels", lambda: kernels)
    monkeypatch.setattr(launch, "_processors", lambda device, bfloat16: 7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=1234))
    launch._compiled.cache_clear()


@pytest.fixture
def calls(monkeypatch):
    """Choose the same launch for everything; yield what was asked for and what was launched."""
    kernels = Kernels()

    def choose(*arguments):
        kernels.calls.append(arguments)
        return (Launch("strips", (4,), 1, ()), Launch("finish", (), 1, ())), 64

    use_kernels(monkeypatch, kernels)
    monkeypatch.setattr(launch, "choose", choose)
    yield kernels.calls
    launch._compiled.cache_clear()


@pytest.mark.parametrize(
    ("shape", "output", "channels_last", "planes", "C"),
    [
        ((2, 3, 5, 7), (2, 2), False, 6, 1),
        ((2, 3, 5, 7), (2, 2), True, 2, 3),
        ((2, 3, 5, 7), (1, 1), True, 2, 3),  # an output of one pixel is of both formats
        ((2, 3, 1, 1), (4, 4), True, 2, 3),  # and so is such an input
        ((2, 1, 5, 7), (2, 2), True, 2, 1),  # one channel: the memory is the same
        ((3, 5, 7), (2, 2), False, 3, 1),
    ],
)
def test_sizes_follow_the_memory_format(calls, shape, output, channels_last, planes, C):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.zeros(shape, dtype=torch.float16).contiguous(memory_format=memory_format)
    result = torch.zeros(*shape[:-2], *output, dtype=torch.float16).contiguous(memory_format=memory_format)
    for backward, src, dst in ((False, input, result), (True, result, input)):
        calls.clear()
        (numba_pool.cuda.backward if backward else numba_pool.cuda.forward)(src, dst)
        shifts = src.data_ptr() % 16 // 2, dst.data_ptr() % 16 // 2
        assert calls[0] == ("float16", backward, planes, *src.shape[-2:], *dst.shape[-2:], C, *shifts, 7)
        compiled, launches, src_address, dst_address, scratch, stream = calls[1]
        assert compiled == [(*each[:2], "float16", backward) for each in launches]
        assert (src_address, dst_address, stream) == (src.data_ptr(), dst.data_ptr(), 1234)
        assert scratch % 16 == 0


def test_odd_offsets_are_told(calls):
    memory = torch.zeros(100)
    numba_pool.cuda.forward(memory[3:83].view(1, 1, 8, 10), memory[89:93].view(1, 1, 2, 2))
    assert calls[0][8:10] == ((memory.data_ptr() // 4 + 3) % 4, (memory.data_ptr() // 4 + 89) % 4)


def test_kernels_are_launched_one_after_the_other_on_the_stream():
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    kernels = launch.load_kernels()
    noted = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments: noted.append((grid, arguments))

    first, second = Launch("strips", (4,), 1000, (1, 2)), Launch("finish", (), 3, (4,))
    for handle in (0, 4096):
        noted.clear()
        kernels.run([Kernel(), Kernel()], (first, second), 16, 32, 48, handle)
        kernels.run([Kernel()], (first,), 16, 32, stream=handle)
        assert [arguments for _, arguments in noted] == [(16, 48, 1, 2), (48, 32, 4), (16, 32, 1, 2)]
        assert [blocks for (blocks, _, _), _ in noted] == [1000, kernels.MIN_BLOCKS, 1000]
        (stream,) = {stream for (_, _, stream), _ in noted}
        assert int(stream.handle) == handle
        assert kernels.cuda.jit(lambda src, dst: None)[128, 256, stream].stream is stream


def caches():
    """Return how much every cache of the CUDA side holds."""
    names = [f"numba_pool.cuda.{module.name}" for module in pkgutil.iter_modules(numba_pool.cuda.__path__)]
    return {
        (name, key): value.cache_info().currsize
        for name in names
        for key, value in vars(importlib.import_module(name)).items()
        if hasattr(value, "cache_info")
    }


def test_no_cache_grows_with_the_number_of_sizes(monkeypatch):
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    use_kernels(monkeypatch, Kernels())

    def pool_all(lengths):
        for H in lengths:
            for W in lengths:
                for memory_format in (torch.contiguous_format, torch.channels_last):
                    input = torch.empty(2, 8, H, W, memory_format=memory_format)
                    numba_pool.cuda.forward(input, torch.empty(2, 8, 3, 3, memory_format=memory_format))

    pool_all((1, 2, 20, 40))
    before = caches()
    assert len(before) > 5
    pool_all(range(20, 52))  # 2048 different sizes
    assert caches() == before


# --- errors ---


def test_without_numba_cuda_the_error_names_the_extra(monkeypatch):
    launch.load_kernels.cache_clear()
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    for version, extra in (("12.8", "cuda12"), ("13.0", "cuda13"), (None, "cuda13")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(ImportError, match=rf"needs numba-cuda.*numba_pool\[{extra}\]"):
            launch.load_kernels()


# What numba-cuda raises where a library is missing, and what where it is older than NumPy.
FAILURES = [
    OSError("libnvvm.so: cannot open shared object file"),
    AttributeError("module 'numpy' has no attribute 'row_stack'"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=["library", "numpy"])
def test_whatever_compilation_raises_comes_with_advice(calls, monkeypatch, failure):
    def fail(*arguments):
        raise failure

    monkeypatch.setattr(Kernels, "compiled", fail)
    with pytest.raises(ImportError) as caught:
        numba_pool.cuda.forward(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2))
    check_advice(caught.value, failure, "cannot compile")


@pytest.mark.parametrize("failure", FAILURES, ids=["library", "numpy"])
def test_whatever_numba_cuda_raises_when_imported_comes_with_advice(monkeypatch, failure):
    def fail(*arguments):
        raise failure

    launch.load_kernels.cache_clear()
    monkeypatch.setattr(launch, "find_spec", lambda name: True)
    monkeypatch.setattr(launch, "import_module", fail)
    with pytest.raises(ImportError) as caught:
        launch.load_kernels()
    check_advice(caught.value, failure, "cannot import")


def check_advice(error, cause, problem):
    message = str(error)
    assert error.__cause__ is cause
    for part in (problem, str(cause), "pip install 'numba_pool[cuda1", "NumPy 2.5", "numba-cuda"):
        assert part in message


def test_a_kernel_that_numba_cannot_compile_comes_with_advice(monkeypatch):
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    kernels = launch.load_kernels()
    failure = AttributeError("module 'numpy' has no attribute 'row_stack'")

    def compile_kernel(dtype, backward, limits):
        def fail(signature):
            raise failure

        return types.SimpleNamespace(compile=fail, py_func=lambda src, dst: None)

    monkeypatch.setitem(kernels.KERNELS, "tiles", compile_kernel)
    monkeypatch.setattr(kernels, "context_of", contextlib.nullcontext)
    use_kernels(monkeypatch, kernels)
    with pytest.raises(ImportError) as caught:
        numba_pool.cuda.forward(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2))
    check_advice(caught.value, failure, "cannot compile")


def test_an_old_device_cannot_do_bfloat16(monkeypatch):
    old = types.SimpleNamespace(major=7, minor=5, name="Old", multi_processor_count=40)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: old)
    assert launch._processors(998, False) == 40
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0 or later; Old has 7\.5"):
        launch._processors(999, True)


def test_the_real_kernels_load():
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    launch.load_kernels.cache_clear()
    kernels = launch.load_kernels()
    assert callable(kernels.context_of)
    assert set(kernels.KERNELS) == {"tiles", "strips", "pixels", "bundles", "finish"}


@pytest.mark.parametrize("current", [None, 0, 1])
def test_the_context_is_the_tensors_device(monkeypatch, current):
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    kernels = launch.load_kernels()
    monkeypatch.setattr(kernels, "cuCtxGetDevice", lambda: (current is None, current))
    monkeypatch.setattr(kernels.cuda, "gpus", ["push 0", "push 1"])
    found = kernels.context_of(1)
    assert isinstance(found, contextlib.nullcontext) if current == 1 else found == "push 1"
