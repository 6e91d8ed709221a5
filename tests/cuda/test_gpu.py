"""What only a GPU can tell: the layer on CUDA tensors, held against the native op in float64, on torch's own terms."""

import gc
import threading
from importlib.util import find_spec

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d as native

from numba_pool import AdaptiveAvgPool2d, adaptive_avg_pool2d

if not torch.cuda.is_available():
    REASON = "torch finds no CUDA device"
elif find_spec("numba_cuda") is None:
    REASON = "needs numba-cuda (the extra `cuda13` or `cuda12`)"
else:
    REASON = ""
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FORMATS = [torch.contiguous_format, torch.channels_last]
BOUND = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
CASES = [
    ((2, 3, 7, 7), (3, 3)),
    ((4, 64, 7, 7), (1, 1)),
    ((2, 16, 13, 13), (6, 6)),
    ((2, 8, 57, 57), (56, 56)),
    ((1, 5, 31, 37), (11, 13)),
    ((2, 32, 224, 224), (7, 7)),
    ((1, 2, 3, 5), (64, 101)),
    ((1, 1, 1, 100_003), (1, 7)),
    ((1, 1, 100_003, 1), (7, 1)),
    ((1, 1, 2048, 2047), (1, 1)),
    ((1, 2, 1000, 1030), (9, 517)),
    ((3, 3, 64, 48), (32, 96)),
    ((0, 3, 8, 8), (2, 2)),
]


def tensors(shape, output_size, dtype, memory_format=torch.contiguous_format):
    generator = torch.Generator("cuda").manual_seed(0)
    input = torch.randn(shape, generator=generator, device="cuda").to(dtype)
    grad = torch.randn(*shape[:-2], *output_size, generator=generator, device="cuda").to(dtype)
    return input.contiguous(memory_format=memory_format), grad.contiguous(memory_format=memory_format)


def pool(input, grad, function=adaptive_avg_pool2d):
    leaf = input.detach().requires_grad_()
    output = function(leaf, grad.shape[-2:])
    return output.detach(), torch.autograd.grad(output, leaf, grad)[0]


def check(results, input, grad):
    wanted = pool(input.double(), grad.double(), native)
    scales = pool(input.double().abs(), grad.double().abs(), native)
    for result, want, scale in zip(results, wanted, scales, strict=True):
        error = (result.double() - want).abs()
        step = torch.finfo(input.dtype).smallest_normal * torch.finfo(input.dtype).eps  # the last bit of a tiny number
        assert bool((error <= BOUND[input.dtype] * scale + step).all()), error.max()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "output_size"), CASES)
def test_equals_the_native_op_in_float64(shape, output_size, dtype, memory_format):
    input, grad = tensors(shape, output_size, dtype, memory_format)
    output, grad_input = pool(input, grad)
    assert output.dtype == grad_input.dtype == dtype
    if input.numel():
        assert output.is_contiguous(memory_format=memory_format)
        assert grad_input.is_contiguous(memory_format=memory_format)
    check((output, grad_input), input, grad)


@pytest.mark.parametrize("offset", [1, 3, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_offsets_have_the_same_bits(dtype, offset):
    for shape, output_size in (((2, 3, 13, 11), (6, 5)), ((2, 2, 300, 512), (3, 4)), ((1, 1, 7, 7), (64, 64))):
        input, grad = tensors(shape, output_size, dtype)
        memory = torch.empty(input.numel() + offset, dtype=dtype, device="cuda")
        odd = memory[offset:].view(shape)
        odd.copy_(input)
        for plain, shifted in zip(pool(input, grad), pool(odd, grad), strict=True):
            assert torch.equal(plain, shifted)


def test_other_strides():
    input, grad = tensors((2, 6, 20, 30), (7, 7), torch.float32)
    for view in (input.transpose(2, 3), input[:, ::2], input[..., ::3], input.expand(2, 6, 20, 30), input.flip(3)):
        check(pool(view, grad[:, : view.shape[1]]), view, grad[:, : view.shape[1]])
    check(pool(input, grad[:, :1, :1, :1].expand_as(grad)), input, grad[:, :1, :1, :1].expand_as(grad))
    check(pool(input[0], grad[0]), input[0], grad[0])


def test_gradcheck():
    for shape, output_size in (((2, 2, 5, 7), (3, 2)), ((1, 2, 2, 3), (5, 4))):
        for memory_format in FORMATS:
            input, _ = tensors(shape, output_size, torch.float64, memory_format)
            leaf = input.requires_grad_()
            assert torch.autograd.gradcheck(lambda x, size=output_size: adaptive_avg_pool2d(x, size), leaf)
            assert torch.autograd.gradgradcheck(lambda x, size=output_size: adaptive_avg_pool2d(x, size), leaf)


def test_a_large_window_is_summed_accurately():
    for shape in ((1, 1, 4096, 2048), (1, 8, 4096, 2048)):
        for memory_format in FORMATS:
            input = torch.full(shape, 0.1, device="cuda").contiguous(memory_format=memory_format)
            torch.testing.assert_close(
                adaptive_avg_pool2d(input, 1), torch.full((1, shape[1], 1, 1), 0.1, device="cuda"), rtol=1e-6, atol=0
            )


def test_half_gradients_are_summed_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        input = torch.zeros(1, 1, 1, 1, dtype=dtype, device="cuda")
        _, grad_input = pool(input, torch.ones(1, 1, 128, 128, dtype=dtype, device="cuda"))
        assert grad_input.item() == 128 * 128


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_same_bits_in_every_run(memory_format):
    for shape, output_size in (((8, 32, 57, 57), (7, 7)), ((1, 2, 2048, 2048), (3, 3)), ((2, 3, 7, 7), (200, 200))):
        input, grad = tensors(shape, output_size, torch.float32, memory_format)
        first = pool(input, grad)
        for _ in range(100):
            assert all(torch.equal(a, b) for a, b in zip(first, pool(input, grad), strict=True))


def test_deterministic_algorithms():
    input, grad = tensors((2, 3, 30, 31), (7, 7), torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deterministic"):
            pool(input, grad, native)
        result = pool(input, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    check(result, input, grad)


def test_runs_on_the_current_stream_and_does_not_wait():
    input, grad = tensors((4, 64, 57, 57), (7, 7), torch.float32)
    wanted = pool(input, grad)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(input)
        torch.cuda._sleep(500_000_000)
        late.copy_(input)
        result = pool(late, grad)
        done = torch.cuda.Event()
        done.record()
        assert not done.query(), "the call waited for the device"
    stream.synchronize()
    for a, b in zip(wanted, result, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_graph_capture(memory_format):
    for shape, output_size in (((4, 64, 57, 57), (7, 7)), ((1, 2, 2048, 2048), (1, 1))):
        input, grad = tensors(shape, output_size, torch.float32, memory_format)
        static = torch.zeros_like(input)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            pool(static, grad)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = pool(static, grad)
        static.copy_(input)
        graph.replay()
        for a, b in zip(captured, pool(input, grad), strict=True):
            assert torch.equal(a, b)


def test_threads():
    wanted, failures = [], []
    work = [tensors((2, 16, 20 + n, 30), (7, 5 + n), torch.float32) for n in range(8)]
    wanted = [pool(*each) for each in work]

    def run(n):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(50):
                    result = pool(*work[n])
                torch.cuda.current_stream().synchronize()
            assert all(torch.equal(a, b) for a, b in zip(result, wanted[n], strict=True))
        except Exception as error:
            failures.append(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_another_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    input, grad = tensors((2, 3, 30, 31), (7, 7), torch.float32)
    first = pool(input, grad)
    second = pool(input.to("cuda:1"), grad.to("cuda:1"))  # while cuda:0 is the current device
    with torch.cuda.device(1):
        third = pool(input.to("cuda:1"), grad.to("cuda:1"))
    for a, b, c in zip(first, second, third, strict=True):
        assert b.get_device() == c.get_device() == 1
        assert torch.equal(a.cpu(), b.cpu())
        assert torch.equal(a.cpu(), c.cpu())


def test_no_memory_is_lost():
    work = [tensors(*case, torch.float32) for case in (((2, 3, 57, 57), (7, 7)), ((1, 1, 2048, 2048), (1, 1)))]
    for each in work:
        pool(*each)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(200):
        for each in work:
            pool(*each)
    gc.collect()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "output_size", "memory_format"),
    [
        ((1, 1, 65_537, 32_800), (7, 7), torch.contiguous_format),
        ((40, 1, 7, 7_700_000), (7, 3_850_000), torch.contiguous_format),
        ((2, 32, 5_801, 5_801), (7, 7), torch.channels_last),
        ((2, 32, 5_801, 5_801), (2_900, 2_900), torch.channels_last),
    ],
)
def test_more_than_two_billion_elements(shape, output_size, memory_format):
    elements = torch.Size(shape).numel()
    assert elements > 2**31
    if torch.cuda.get_device_properties(0).total_memory < 8 * elements:
        pytest.skip("the device's memory is too small")
    # Every element is its column's number modulo 64, so every mean is known from one row.
    row = (torch.arange(shape[3], device="cuda") % 64).half()
    input = torch.empty(shape, dtype=torch.float16, device="cuda", memory_format=memory_format)
    input.copy_(row.expand(shape))
    output = adaptive_avg_pool2d(input, output_size)
    want = native(row.double().view(1, 1, 1, -1), (1, output_size[1])).expand_as(output)
    for n in range(shape[0]):
        torch.testing.assert_close(output[n].double(), want[n], rtol=1e-3, atol=1e-3)
    del input, want
    grad = torch.ones_like(output)
    _, grad_input = pool(torch.empty(shape, dtype=torch.float16, device="cuda", memory_format=memory_format), grad)
    columns = pool(torch.zeros(1, 1, *shape[2:], device="cuda"), torch.ones(1, 1, *output_size, device="cuda"))[1]
    for n in (0, shape[0] - 1):
        torch.testing.assert_close(grad_input[n, -1].float(), columns[0, 0], rtol=1e-3, atol=1e-7)


def test_the_module_in_a_model():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), AdaptiveAvgPool2d((2, 3)), torch.nn.Flatten()).cuda()
    input = torch.randn(2, 3, 17, 19, device="cuda")
    with torch.autocast("cuda", torch.float16):
        output = model(input)
    output.float().sum().backward()
    assert output.shape == (2, 48)
    assert all(parameter.grad is not None for parameter in model.parameters())
