# Torch's stubs know less than these tests do.
# mypy: disable-error-code="union-attr"
"""Bad input: what cannot be pooled gives the documented exception, and what can the right numbers."""

import os
import subprocess
import sys
import time
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers import PACKAGES
from hypothesis import given, settings
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from numba_pool import AdaptiveAvgPool2d, adaptive_avg_pool2d, reference
from numba_pool.windows import pooling_windows

BACKWARD = torch.ops.numba_pool.adaptive_avg_pool2d_backward
FORWARD = torch.ops.numba_pool.adaptive_avg_pool2d
DOCUMENTED = (TypeError, ValueError, RuntimeError)  # NotImplementedError is a RuntimeError
HUGE = [2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30]

POOLED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OTHERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128)


def _strange_tensors():
    base = torch.rand(2, 3, 4, 5)
    return {
        "sparse": base.to_sparse(),
        "sparse csr": base[0, 0].to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(base, 0.1, 0, torch.quint8),
        "nested": torch.nested.nested_tensor([base[0], base[1]], layout=torch.strided),
        "mkldnn": base.to_mkldnn() if torch.backends.mkldnn.is_available() else base.to_sparse(),
        "conjugated": torch.rand(2, 3, 4, 5, dtype=torch.complex64).conj(),
        "float8": base.to(torch.float8_e4m3fn),
        "complex32": torch.zeros(2, 3, 4, 5, dtype=torch.complex32),
        **{str(dtype): torch.ones(2, 3, 4, 5).to(dtype) for dtype in OTHERS},
    }


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # each of these kinds is a prototype, says torch
    STRANGE = _strange_tensors()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STRANGE)
def test_tensors_that_cannot_be_pooled(name):
    tensor = STRANGE[name]
    for pool in (adaptive_avg_pool2d, AdaptiveAvgPool2d(2), FORWARD):
        arguments = (tensor,) if isinstance(pool, torch.nn.Module) else (tensor, (2, 2))
        with pytest.raises(DOCUMENTED):
            pool(*arguments)
    with pytest.raises(DOCUMENTED):
        BACKWARD(tensor, (4, 5), False)


@pytest.mark.parametrize(
    "junk", [None, 1, 2.0, "x", [1.0], np.zeros((1, 2, 3)), {}, object(), torch.float32, [[torch.ones(3)]]]
)
def test_not_a_tensor(junk):
    with pytest.raises(TypeError, match="Tensor"):
        adaptive_avg_pool2d(junk, 2)


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("place", ["both", "height", "width"])
def test_huge_output_sizes(size, place):
    """An exception, at once: neither a MemoryError nor a wrap-around to a small size."""
    output_size = {"both": size, "height": (size, 2), "width": (2, size)}[place]
    for pool in (adaptive_avg_pool2d, FORWARD):
        began = time.perf_counter()
        with pytest.raises(DOCUMENTED) as caught:
            pool(torch.ones(4, 16, 3, 3), output_size if isinstance(output_size, tuple) else (output_size, output_size))
        assert not isinstance(caught.value, MemoryError)
        assert time.perf_counter() - began < 5


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63, -1, 0])
def test_backward_to_a_huge_or_empty_input(size):
    for input_size in ((size, size), (size, 3), (3, size)):
        with pytest.raises(DOCUMENTED):
            BACKWARD(torch.ones(1, 1, 2, 2), input_size, False)


integers = st.one_of(
    st.integers(-3, 12),
    st.sampled_from(HUGE),
    st.sampled_from([-size for size in HUGE]),
    st.integers(0, 9).map(np.int64),
    st.integers(0, 9).map(np.uint8),
    st.integers(0, 9).map(torch.tensor),
)
atoms = st.one_of(
    integers,
    st.none(),
    st.booleans(),
    st.floats(),
    st.floats().map(np.float32),
    st.text(max_size=2),
    st.binary(max_size=2),
    st.complex_numbers(),
    st.just(object()),
)
output_sizes = st.one_of(
    atoms,
    st.lists(atoms, max_size=4),
    st.lists(atoms, max_size=3).map(tuple),
    st.tuples(integers, integers),
    st.lists(st.integers(0, 9), max_size=3).map(np.array),
    st.lists(st.integers(0, 9), max_size=3).map(torch.tensor),
    st.just({}),
    st.sets(st.integers(1, 3)),
)
shapes = st.lists(st.integers(0, 6), max_size=6)


@settings(max_examples=400)
@given(shapes, st.sampled_from(POOLED + OTHERS), output_sizes, st.sampled_from(["cpu", "meta"]))
def test_any_arguments(shape, dtype, output_size, device):
    """Right, or one of the documented exceptions. A meta tensor agrees about which."""
    x = (torch.rand(shape) * 4).to(dtype)
    try:
        output = adaptive_avg_pool2d(x.to(device), output_size)
    except DOCUMENTED:
        return
    assert dtype in POOLED
    assert len(shape) in (3, 4)
    assert output.shape[:-2] == x.shape[:-2]
    if device == "meta" or output.numel() == 0:
        return
    exact = reference.forward(x.double().reshape(-1, 1, *shape[-2:]).numpy(), tuple(output.shape[-2:]))
    tolerance = 2 * torch.finfo(dtype).eps
    np.testing.assert_allclose(output.double().numpy().reshape(exact.shape), exact, rtol=tolerance, atol=tolerance)


@settings(max_examples=200)
@given(shapes, st.sampled_from(POOLED + OTHERS), st.lists(st.integers(-1, 9), max_size=3), st.booleans())
def test_any_gradient(shape, dtype, input_size, channels_last):
    """The backward operator takes sizes from the gradient that it is given, so none can lead it out of bounds."""
    g = torch.rand(shape).to(dtype)
    try:
        gradient = BACKWARD(g, input_size, channels_last)
    except DOCUMENTED:
        assert (
            dtype not in POOLED
            or len(shape) not in (3, 4)
            or 0 in shape[-2:]
            or len(input_size) != 2
            or min(input_size) < 1
        )
        return
    assert gradient.shape == (*shape[:-2], *input_size)
    if gradient.numel():
        exact = reference.backward(g.double().reshape(-1, 1, *shape[-2:]).numpy(), tuple(input_size))
        tolerance = 2 * torch.finfo(dtype).eps
        np.testing.assert_allclose(
            gradient.double().numpy().reshape(exact.shape), exact, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda g: g[:, :1],
        lambda g: g[..., :1],
        lambda g: g[0],
        lambda g: g.to("meta"),
        lambda g: g.to(torch.complex64),
        lambda g: g.to_sparse(),
        lambda g: None,
        lambda g: g.reshape(-1),
    ],
    ids=["channels", "width", "batch", "device", "complex", "sparse", "None", "flat"],
)
def test_wrong_gradients(wrong):
    """Autograd tells a gradient of another shape or device; torch's own op has read out of bounds with one."""
    x = torch.rand(2, 3, 7, 5, requires_grad=True)
    output = adaptive_avg_pool2d(x, (3, 2))
    with pytest.raises(DOCUMENTED):
        output.backward(wrong(torch.ones_like(output)))
    assert x.grad is None


def test_gradient_of_another_float_type():
    """Autograd converts it, as for any op."""
    x = torch.rand(2, 3, 7, 5, requires_grad=True)
    output = adaptive_avg_pool2d(x, (3, 2))
    output.backward(torch.ones_like(output).double())
    assert x.grad.dtype == torch.float32
    np.testing.assert_allclose(x.grad.numpy(), reference.backward(np.ones(output.shape), (7, 5)), rtol=1e-6)


@settings(max_examples=100)
@given(
    st.sampled_from(POOLED),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    st.tuples(*[st.integers(1, 40)] * 4),
    st.booleans(),
    st.data(),
)
def test_nan_and_inf_stay_in_their_windows(dtype, bad, sizes, channels_last, data):
    """In every window that holds the bad value, and in no other; forward and backward."""
    H, W, oH, oW = sizes
    h, w = data.draw(st.integers(0, H - 1)), data.draw(st.integers(0, W - 1))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.ones(2, 3, H, W, dtype=dtype).contiguous(memory_format=memory_format)
    x[1, 2, h, w] = bad
    holds_h, holds_w = (
        torch.from_numpy((starts <= i) & (i < ends))
        for (starts, ends), i in ((pooling_windows(H, oH), h), (pooling_windows(W, oW), w))
    )
    expected = torch.zeros(2, 3, oH, oW, dtype=torch.bool)
    expected[1, 2] = holds_h[:, None] & holds_w
    output = adaptive_avg_pool2d(x, (oH, oW))
    assert torch.equal(~output.isfinite(), expected)
    assert torch.equal(output[~expected], torch.ones_like(output[~expected]))
    spread = BACKWARD(x, (oH, oW), channels_last)  # the same windows with the roles swapped
    assert torch.equal(~spread.isfinite(), expected)


ATHERIS = """
import sys
import atheris
import numpy as np
import torch
from numba_pool import adaptive_avg_pool2d, reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool, torch.complex64)
done = 0

def one(data):
    global done
    p = atheris.FuzzedDataProvider(data)
    shape = [p.ConsumeIntInRange(0, 12) for _ in range(p.ConsumeIntInRange(2, 5))]
    dtype = p.PickValueInList(list(DTYPES))
    sizes = []
    for _ in range(p.ConsumeIntInRange(1, 3)):
        ways = [p.ConsumeIntInRange(-2, 12), p.ConsumeInt(8), None, p.ConsumeFloat(), p.ConsumeBool()]
        sizes.append(p.PickValueInList(ways))
    x = torch.from_numpy(np.resize(np.frombuffer(p.ConsumeBytes(64) or b"1", np.uint8), shape) / 256).to(dtype)
    if p.ConsumeBool() and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    done += 1
    try:
        output = adaptive_avg_pool2d(x, sizes[0] if len(sizes) == 1 else tuple(sizes))
    except (TypeError, ValueError, RuntimeError):
        return
    assert x.dtype in DTYPES[:4]
    if output.numel():
        exact = reference.forward(x.double().reshape(-1, 1, *shape[-2:]).numpy(), tuple(output.shape[-2:]))
        e = 2 * torch.finfo(dtype).eps
        np.testing.assert_allclose(output.double().numpy().reshape(exact.shape), exact, rtol=e, atol=e)

atheris.Setup([sys.argv[0], "-runs=3000", "-seed=1", "-timeout=60", "-rss_limit_mb=6000"], one)
import atexit
atexit.register(lambda: print("RUNS", done, flush=True))
atheris.Fuzz()
"""


@pytest.mark.slow
def test_atheris(tmp_path):
    """A coverage-guided run, bounded by count."""
    pytest.importorskip("atheris", reason="needs atheris, which has builds for few versions of Python")
    script = tmp_path / "fuzz.py"
    script.write_text(ATHERIS)
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Done 3000 runs" in run.stderr


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_a_device_without_kernels(device):
    """No tensor of theirs can be made on a machine without such a device; a fake one says where it would be."""
    with FakeTensorMode():
        x = torch.empty(2, 3, 4, 5, device=device)
        for pool in (adaptive_avg_pool2d, FORWARD):
            with pytest.raises(NotImplementedError, match=f"device type '{device}'"):
                pool(x, (2, 2))
        with pytest.raises(NotImplementedError, match=f"device type '{device}'"):
            BACKWARD(x, (4, 5), False)


@given(st.integers(0, 9), st.integers(0, 9))
def test_symbolic_sizes(oH, oW):
    """A size that torch keeps as a symbol, of an ordinary tensor and of a fake one."""
    x = torch.randn(2, 3, 5, 7)
    fakes = FakeTensorMode(shape_env=ShapeEnv())
    sizes = fakes.from_tensor(torch.empty(oH + 2, oW + 2), static_shapes=False).shape
    output_size = (sizes[0] - 2, sizes[1] - 2)
    assert isinstance(output_size[0], torch.SymInt)
    assert adaptive_avg_pool2d(x, output_size).equal(adaptive_avg_pool2d(x, (oH, oW)))
    fake = adaptive_avg_pool2d(fakes.from_tensor(x), output_size)
    assert tuple(int(size) for size in fake.shape) == (2, 3, oH, oW)
