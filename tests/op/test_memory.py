"""Results are ordinary tensors of torch, and a tensor whose memory was released is refused."""

import mmap

import pytest
import torch
import torch.nn.functional as F
from helpers import LAYOUTS, ROOT, spawn

from numba_pool import adaptive_avg_pool2d
from numba_pool.op import memory

# Input shape and output size; the last result is large enough that huge pages are asked for.
SIZES = [((2, 3, 9, 8), (4, 3)), ((2, 3, 9, 8), (9, 8)), ((3, 9, 8), 1), ((4, 16, 160, 130), (128, 129))]


def _forward(x, output_size):
    return adaptive_avg_pool2d(x, output_size)


def _gradient(x, output_size):
    # Of an input as large as the output.
    leaf = torch.zeros(_forward(x, output_size).shape).contiguous(memory_format=_format(x)).requires_grad_()
    return torch.autograd.grad(adaptive_avg_pool2d(leaf, x.shape[-2:]), leaf, x)[0]


def _format(x):
    is_dense = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_dense else torch.contiguous_format


@pytest.fixture(params=["forward", "backward"])
def pool(request):
    return {"forward": _forward, "backward": _gradient}[request.param]


@pytest.fixture(params=[(*sizes, layout) for sizes in SIZES for layout in ("contiguous", "channels_last")], ids=str)
def result(request, pool):
    shape, output_size, layout = request.param
    x = torch.randn(shape)
    return pool(LAYOUTS[layout](x) if x.dim() == 4 else x, output_size)


def in_memory(tensor, count):
    """Return the first elements of a tensor's storage."""
    return torch.empty(0).set_(tensor.untyped_storage(), 0, (count,)).clone()


def test_a_result_owns_its_memory(result):
    assert result._base is None
    assert result.storage_offset() == 0
    assert result.untyped_storage().nbytes() == result.nbytes
    assert result.untyped_storage().resizable()


def test_a_result_grows_and_shrinks(result):
    count = result.numel()
    values = in_memory(result, count)
    for factor in (2, 5):
        result.resize_(factor * count).view(-1)[count:] = 7
        assert torch.equal(result[:count], values)
        assert result[count:].eq(7).all()
    result.resize_(2)
    assert torch.equal(result, values[:2])
    result.resize_(3 * count)
    assert torch.equal(result[:count], values)


def test_the_memory_of_a_result_can_be_released(result):
    """As FSDP does with gradients and activations."""
    shape, stride = result.shape, result.stride()
    storage = result.untyped_storage()
    storage.resize_(0)
    assert storage.nbytes() == 0
    storage.resize_(4 * result.numel())
    assert (result.fill_(3).shape, result.stride()) == (shape, stride)
    assert result.eq(3).all()


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_a_result_takes_the_output_of_another_op(result):
    other = torch.randn_like(result)
    assert torch.add(other, 1, out=result) is result
    assert torch.equal(result, other + 1)
    larger = torch.randn(2, *other.shape)
    torch.add(larger, 1, out=result)
    assert torch.equal(result, larger + 1)


def test_a_result_can_be_shared_between_processes(result):
    values = result.clone()
    assert result.share_memory_().is_shared()
    assert torch.equal(result, values)


def test_numpy_sees_a_result(result):
    result.numpy()[...] = 5
    assert result.eq(5).all()
    assert torch.equal(result.add_(1), torch.full_like(result, 6))


def test_a_result_is_new_memory(pool):
    """It is neither the input's nor given back with it."""
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.randn(2, 3, 9, 8))
        before = x.clone()
        pool(x, (9, 8)).zero_()
        assert torch.equal(x, before)
    results = [pool(torch.full((1, 64, 64, 64), float(i)), 64) for i in range(8)]
    assert [result.unique().tolist() for result in results] == [[float(i)] for i in range(8)]


def test_huge_pages_are_asked_for_inside_large_results(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_madvise", lambda *arguments: asked.append(arguments))
    for channels_last in (False, True):
        for size, times in ((memory.HUGE // 4, 1), (memory.HUGE // 4 - 64, 0)):
            asked.clear()
            tensor = memory.empty((1, 64, size // 64, 1), torch.empty(0), channels_last)
            assert len(asked) == times
            for begin, length, _ in asked:
                assert tensor.data_ptr() <= begin < begin + length <= tensor.data_ptr() + tensor.nbytes
                assert begin % mmap.PAGESIZE == length % mmap.PAGESIZE == 0
    assert not asked


def test_without_huge_pages(monkeypatch):
    """As on other systems than Linux."""
    monkeypatch.setattr(memory, "_madvise", None)
    x = torch.randn(4, 16, 160, 130)
    torch.testing.assert_close(adaptive_avg_pool2d(x, (128, 129)), F.adaptive_avg_pool2d(x, (128, 129)))


def released(tensor):
    """Release the memory of a tensor, which keeps its shape and strides."""
    tensor.untyped_storage().resize_(0)
    return tensor


# In a process of its own, which a call that reads nevertheless would end.
RELEASED = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import pytest, torch
from helpers import LAYOUTS, ROOT, spawn
from numba_pool import adaptive_avg_pool2d

backward = torch.ops.numba_pool.adaptive_avg_pool2d_backward

def released(layout):
    x = torch.randn(4, 3, 9, 8)
    if layout in LAYOUTS:
        x = LAYOUTS[layout](x)
    else:
        x = {{"3-D": x[0].clone(), "3-D, in the middle": x[2], "3-D, transposed": x[0].mT.contiguous().mT}}[layout]
    x.untyped_storage().resize_(0)
    return x

for layout in (*LAYOUTS, "3-D", "3-D, in the middle", "3-D, transposed"):
    for output_size in ((4, 3), (1, 1), (9, 8), (20, 8)):
        for call in (
            lambda x, o: adaptive_avg_pool2d(x, o),
            lambda x, o: adaptive_avg_pool2d(x.requires_grad_(), o),
            lambda x, o: backward(x, o, False),
            lambda x, o: backward(x, o, True),
        ):
            print(layout, output_size, file=sys.stderr, flush=True)
            with pytest.raises(RuntimeError, match="released"):
                call(released(layout), output_size)
"""


def test_a_released_tensor_raises():
    spawn(RELEASED)


def test_a_released_gradient_raises():
    x = torch.randn(2, 3, 9, 8, requires_grad=True)
    y = adaptive_avg_pool2d(x, (4, 3))
    with pytest.raises(RuntimeError, match="released"):
        y.backward(released(torch.ones_like(y)))


def test_an_input_that_is_released_after_pooling_is_not_needed():
    """Its gradient needs sizes alone."""
    x = torch.randn(2, 3, 9, 8, requires_grad=True)
    inner = x * 2
    y = adaptive_avg_pool2d(inner, 1)
    released(inner)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 2 / 72))


def test_a_zero_tensor_is_pooled():
    """Torch keeps no memory for a tangent that is known to be zero: it was not released."""
    zeros = torch._efficientzerotensor((2, 3, 9, 8))
    for output_size in ((4, 3), (9, 8)):
        pooled = adaptive_avg_pool2d(zeros, output_size)
        assert torch.equal(pooled, torch.zeros(2, 3, *output_size))
        assert pooled.add_(1).all()
