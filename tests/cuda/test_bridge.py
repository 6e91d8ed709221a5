"""The bridge from torch to the CUDA kernels, as far as it goes without a GPU."""

import contextlib
import types

import pytest
import torch

from numba_pool import _cuda_bridge


@pytest.mark.parametrize("dtype", list(_cuda_bridge._DTYPES))
def test_the_address_is_where_the_elements_begin(dtype):
    tensor = torch.zeros(5, 4, 3, dtype=dtype, requires_grad=True)
    for view in (tensor, tensor[1:], tensor[2:, 1:]):
        assert _cuda_bridge.address(view) == view.data_ptr()


@pytest.fixture
def planned(monkeypatch):
    """Run the bridge on CPU tensors, with kernels that only note what they are given."""
    calls = []

    class Plan:
        scratch = 64

        def run(self, *addresses):
            calls.append(addresses)

    def plan(*arguments):
        calls.append(arguments)
        return Plan()

    kernels = types.SimpleNamespace(forward=plan, backward=plan)
    room = (kernels, contextlib.nullcontext, (ZeroDivisionError,))
    monkeypatch.setattr(_cuda_bridge, "_cuda_room", lambda: room)
    monkeypatch.setattr(_cuda_bridge, "_processors", lambda device, bfloat16: 7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=1234))
    return calls


@pytest.mark.parametrize(
    ("shape", "output", "channels_last", "planes", "inner"),
    [
        ((2, 3, 5, 7), (2, 2), False, 6, 1),
        ((2, 3, 5, 7), (2, 2), True, 2, 3),
        ((2, 3, 5, 7), (1, 1), True, 2, 3),  # an output of one pixel is of both formats
        ((2, 3, 1, 1), (4, 4), True, 2, 3),  # and so is such an input
        ((2, 1, 5, 7), (2, 2), True, 2, 1),  # one channel: the memory is the same
        ((3, 5, 7), (2, 2), False, 3, 1),
    ],
)
def test_sizes_follow_the_memory_format(planned, shape, output, channels_last, planes, inner):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.zeros(shape, dtype=torch.float16).contiguous(memory_format=memory_format)
    result = torch.zeros(*shape[:-2], *output, dtype=torch.float16).contiguous(memory_format=memory_format)
    for direction, src, dst in (("forward", input, result), ("backward", result, input)):
        planned.clear()
        getattr(_cuda_bridge, direction)(src, dst)
        shifts = src.data_ptr() % 16 // 2, dst.data_ptr() % 16 // 2
        assert planned[0] == ("float16", planes, *shape[-2:], *output, inner, *shifts, -1, 7)
        src_address, dst_address, scratch, stream = planned[1]
        assert (src_address, dst_address, stream) == (src.data_ptr(), dst.data_ptr(), 1234)
        assert scratch % 16 == 0


def test_odd_offsets_are_told(planned):
    memory = torch.zeros(100)
    _cuda_bridge.forward(memory[3:83].view(1, 1, 8, 10), memory[89:93].view(1, 1, 2, 2))
    assert planned[0][7:9] == ((memory.data_ptr() // 4 + 3) % 4, (memory.data_ptr() // 4 + 89) % 4)


def test_without_numba_cuda_the_error_names_the_extra(monkeypatch):
    _cuda_bridge._cuda_room.cache_clear()
    monkeypatch.setattr(_cuda_bridge, "find_spec", lambda name: None)
    for version, extra in (("12.8", "cuda12"), ("13.0", "cuda13"), (None, "cuda13")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(ImportError, match=rf"needs numba-cuda.*numba_pool\[{extra}\]"):
            _cuda_bridge._cuda_room()


def test_without_a_toolkit_the_error_names_the_extra(planned, monkeypatch):
    class Plan:
        scratch = 0

        def run(self, *addresses):
            raise ZeroDivisionError("libnvvm.so: cannot open shared object file")

    kernels = types.SimpleNamespace(forward=lambda *arguments: Plan())
    room = (kernels, contextlib.nullcontext, (ZeroDivisionError,))
    monkeypatch.setattr(_cuda_bridge, "_cuda_room", lambda: room)
    with pytest.raises(ImportError, match=r"libnvvm\.so.*numba_pool\[cuda1[23]\]"):
        _cuda_bridge.forward(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2))


def test_an_old_device_cannot_do_bfloat16(monkeypatch):
    old = types.SimpleNamespace(major=7, minor=5, name="Old", multi_processor_count=40)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: old)
    assert _cuda_bridge._processors(998, False) == 40
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0 or later; Old has 7\.5"):
        _cuda_bridge._processors(999, True)


def test_the_real_room_opens():
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    _cuda_bridge._cuda_room.cache_clear()
    kernels, context_of, _ = _cuda_bridge._cuda_room()
    assert callable(context_of)
    assert kernels.forward("float32", 4, 7, 7, 2, 2).scratch == 0


@pytest.mark.parametrize("current", [None, 0, 1])
def test_the_context_is_the_tensors_device(monkeypatch, current):
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    import cuda.bindings.driver
    import numba.cuda

    monkeypatch.setattr(cuda.bindings.driver, "cuCtxGetDevice", lambda: (current is None, current))
    monkeypatch.setattr(numba.cuda, "gpus", ["push 0", "push 1"])
    _cuda_bridge._cuda_room.cache_clear()
    try:
        _, context_of, _ = _cuda_bridge._cuda_room()
        found = context_of(1)
        assert isinstance(found, contextlib.nullcontext) if current == 1 else found == "push 1"
    finally:
        _cuda_bridge._cuda_room.cache_clear()
