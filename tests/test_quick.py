"""Calls that come again are done at once by compiled code: the third is held to the first."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from helpers import DTYPES, spawn

from numba_pool import _autograd, _dispatch, _dlpack, _quick, adaptive_avg_pool2d

pytestmark = pytest.mark.skipif(not _dlpack.TAKES_TENSORS, reason="this torch takes no tensors from compiled code")


@pytest.fixture
def remembered(monkeypatch):
    """Nothing came before; and what is remembered now is listed."""
    calls = []
    remember = _quick.remember

    def listed(call, *others):
        again = remember(call, *others)
        calls.append((call, again))
        return again

    _dispatch._plan.cache_clear()
    monkeypatch.setattr(_dispatch, "_again", {})
    monkeypatch.setattr(_quick, "_kept", [])
    monkeypatch.setattr(_quick, "remember", listed)
    yield calls
    _dispatch._plan.cache_clear()


def same(one, other):
    """Say whether two tensors cannot be told apart."""
    told = [(t.shape, t.stride(), t.dtype, t.device, t.requires_grad, t.is_contiguous()) for t in (one, other)]
    return told[0] == told[1] and torch.equal(one, other)


SIZES = [
    ((2, 3, 8, 8), (2, 2)),
    ((2, 3, 8, 8), (1, 1)),
    ((2, 3, 1, 1), (4, 5)),
    ((2, 3, 10, 10), (7, 7)),
    ((3, 5, 7), (2, 11)),
    ((1, 1, 9, 5), (4, 3)),
    ((2, 20, 6, 7), (4, 3)),
    ((1, 4, 1, 9), (1, 2)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "size", "memory_format"),
    [
        (shape, size, memory_format)
        for shape, size in SIZES
        for memory_format in (torch.contiguous_format, torch.channels_last)[: len(shape) - 2]
    ],
    ids=str,
)
def test_the_third_call_returns_what_the_first_does(remembered, shape, size, dtype, memory_format):
    inputs = [torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(3)]
    grads = [torch.randn(*shape[:-2], *size).to(dtype).contiguous(memory_format=memory_format) for _ in range(3)]
    is_channels_last = _dispatch.is_channels_last(inputs[0])

    def once(k):
        return adaptive_avg_pool2d(inputs[k], size), _autograd.pool_backward(grads[k], shape[-2:], is_channels_last)

    first = [once(k) for k in range(3)][2]
    third = once(2)
    assert len(remembered) == 2
    assert all(again is not None for _, again in remembered)
    for tensor, (call, again) in zip((inputs[2], grads[2]), remembered, strict=True):
        assert again(tensor)[0] is call
    for one, other in zip(first, third, strict=True):
        assert same(one, other)
        assert other.data_ptr() % 64 == 0
    assert third[0].data_ptr() != once(2)[0].data_ptr()


def test_training_three_steps(remembered):
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(adaptive_avg_pool2d(x, 2).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        with torch.no_grad():
            expected = torch.nn.functional.adaptive_avg_pool2d(x, 2)
        torch.testing.assert_close(
            gradient, 2 * expected.repeat_interleave(4, 2).repeat_interleave(4, 3) / 16, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(second, gradient / 4, rtol=1e-5, atol=1e-6)
    assert len(remembered) >= 2


def test_sources_are_told_apart(remembered):
    """The function for a target size asks for shape, strides, dtype, device and memory, whatever came last."""
    like = torch.randn(2, 4, 8, 8)
    sources = [
        like,
        like[:1].clone(),
        like.to(memory_format=torch.channels_last),
        like.double(),
        like.half(),
        like.bfloat16(),
        like[0].clone(),
        like.reshape(2, 4, 4, 16),
        like.reshape(2, 4, 64, 1),
    ]
    expected = [adaptive_avg_pool2d(source, 2) for source in sources]
    for _ in range(3):
        for source, target in zip(sources, expected, strict=True):
            assert same(adaptive_avg_pool2d(source, 2), target)
    assert len(remembered) == len(sources) == len(_quick._kept)
    again = _dispatch._again[2, 2]
    for source, (call, _) in zip(sources, remembered, strict=True):
        assert again(source)[0] is call
    others = like[:, :2], like.transpose(2, 3), like.to("meta"), like.to_sparse(), like.int(), torch.randn(()), like[:0]
    for other in (*others, torch._efficientzerotensor(like.shape), like.to_mkldnn()):
        assert again(other) is None
    with pytest.raises(TypeError):
        again()


def test_strides_of_single_elements_are_told_apart(remembered):
    """Where a size is 1, strides say which format a tensor has."""
    one, other = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6).as_strided((2, 1, 6, 6), (36, 1, 6, 1))
    for _ in range(4):
        for x in (one, other):
            y = adaptive_avg_pool2d(x, 2)
            assert y.stride() == torch.nn.functional.adaptive_avg_pool2d(x, 2).stride()


def test_what_dlpack_does_not_say_is_looked_at(remembered):
    x = torch.randn(1, 2, 8, 8)
    negative = torch._neg_view(x)
    for _ in range(4):
        y = adaptive_avg_pool2d(x, 2)
        assert torch.equal(adaptive_avg_pool2d(negative, 2), -y)
    zero = torch._efficientzerotensor((1, 2, 8, 8))
    for _ in range(3):
        assert not adaptive_avg_pool2d(zero, 2).any()
    assert len(_quick._kept) == 1  # of a plan that both use


def test_a_hook_may_hand_in_another_gradient(remembered):
    """Such as one with other strides; the gradient's record is not that of its forward call."""
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    shared = torch.ones(1).expand(2, 3, 2, 2)
    for k in range(6):
        y = adaptive_avg_pool2d(x, 2)
        y.register_hook(lambda grad, k=k: shared if k % 2 else grad)
        (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 1.0))
        assert torch.equal(gradient, torch.full_like(x, 1 / 16))


def test_large_and_single_calls_are_not_remembered(remembered):
    adaptive_avg_pool2d(torch.randn(1, 2, 8, 8), 2)
    for shape, size in (((8, 64, 64, 64), 4), ((1, 1, 1, 20000), 1), ((2, 3, 8, 8), (8, 8)), ((0, 3, 8, 8), 2)):
        for _ in range(4):
            adaptive_avg_pool2d(torch.randn(shape), size)
    for _ in range(4):
        adaptive_avg_pool2d(torch.randn(4, 3, 9, 8)[::2, :, 1:, ::2], 2)  # through copies
    assert remembered == []


def test_only_so_many_are_remembered(remembered, monkeypatch):
    monkeypatch.setattr(_quick, "MOST_RECORDS", 3)
    for planes, _ in product(range(1, 8), range(3)):
        x = torch.randn(1, planes, 8, 8)
        torch.testing.assert_close(adaptive_avg_pool2d(x, 2), torch.nn.functional.adaptive_avg_pool2d(x, 2))
    assert len(_quick._kept) == 3
    assert [again is None for _, again in remembered] == [False] * 3 + [True] * 4


def test_threads_share_records(remembered):
    inputs = [torch.randn(1, planes, 8, 8) for planes in range(1, 9)]
    expected = [torch.nn.functional.adaptive_avg_pool2d(x, 2) for x in inputs]

    def work(_):
        for _ in range(200):
            for x, y in zip(inputs, expected, strict=True):
                torch.testing.assert_close(adaptive_avg_pool2d(x, 2), y)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


SHORT_OF_MEMORY = """
import ctypes, resource, torch
from numba_pool import _dispatch, adaptive_avg_pool2d
x = torch.randn(1, 1, 2, 2)
for _ in range(3):
    y = adaptive_avg_pool2d(x, (128, 128))
again = _dispatch._again[128, 128]
assert again(x) is not None
limit = resource.getrlimit(resource.RLIMIT_AS)
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use, limit[1]))
kept = []
try:
    while (answer := again(x)) is not None:
        kept.append(answer)
finally:
    resource.setrlimit(resource.RLIMIT_AS, limit)
assert all(torch.equal(target, y) for _, target in kept)
assert torch.equal(adaptive_avg_pool2d(x, (128, 128)), y)
print(len(kept))
"""


def test_where_memory_is_short_the_slow_way_says_so():
    pytest.importorskip("resource")
    assert int(spawn(SHORT_OF_MEMORY)) < 100_000
