"""The book's operator to copy, `book/examples/own_op.py`: right, and what its chapter prints."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_max_pool2d as native
from torch.testing import assert_close

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "book" / "examples" / "own_op.py"
sys.path.insert(0, str(SOURCE.parent))

import own_op  # noqa: E402

pytestmark = pytest.mark.skipif(
    not np.from_dlpack(torch.zeros(1)).flags.writeable, reason="needs newer NumPy and torch, to write through DLPack"
)

SIZES = [(9, 11, 4, 3), (8, 12, 4, 3), (7, 7, 1, 1), (13, 1, 5, 1), (3, 5, 8, 11), (1, 1, 3, 2), (5, 6, 5, 6)]


def with_gradient(function, x, size, grad_output):
    leaf = x.detach().requires_grad_()
    y = function(leaf, size)
    return y, *torch.autograd.grad(y, leaf, grad_output)


def check(x, size, **tolerance):
    """Raise AssertionError unless the output is torch's, bit for bit, and the gradient as near as rounding allows."""
    grad_output = torch.randn(*x.shape[:-2], *size, dtype=x.dtype, device=x.device)
    y, grad = with_gradient(own_op.adaptive_max_pool2d, x, size, grad_output)
    want, want_grad = with_gradient(native, x, size, grad_output)
    assert torch.equal(y, want)
    assert y.dtype == want.dtype
    assert_close(grad, want_grad, **tolerance)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_torch(sizes):
    check(torch.randn(2, 3, *sizes[:2]), sizes[2:])


def test_large_planes_on_many_threads():
    check(torch.randn(4, 33, 56, 56), (7, 7))


def test_every_layout():
    x = torch.randn(2, 4, 6, 10)
    check(x.to(memory_format=torch.channels_last), (4, 3))
    check(x.transpose(2, 3), (4, 3))
    check(x[:, ::2, 1:, ::3], (2, 2))
    check(x[:1, :1].expand(2, 3, 6, 10), (4, 3))
    check(x[0], (4, 3))
    negated = torch.randn(2, 3, 5, 5, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    check(negated, (2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_types(dtype):
    # Native adds gradients of 16 bits in 16 bits, where windows overlap; the operator adds in float32.
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.02}
    check(torch.randn(2, 3, 9, 11, dtype=dtype), (4, 3), **tolerance)


def test_equal_values_and_nan():
    x = torch.zeros(1, 2, 4, 4)
    x[0, 0, 1, 2] = x[0, 1, 3, 0] = float("nan")
    x[0, 1, 0] = -float("inf")
    index = own_op.pool(x, 2, 3)[1]
    want, want_index = native(x, (2, 3), return_indices=True)
    assert_close(own_op.adaptive_max_pool2d(x, (2, 3)), want, equal_nan=True)
    assert torch.equal(index, want_index)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)], ids=str)
def test_empty_batch(shape):
    x = torch.randn(shape, requires_grad=True)
    y = own_op.adaptive_max_pool2d(x, (2, 2))
    y.sum().backward()
    assert y.shape == (*shape[:2], 2, 2)
    assert x.grad.shape == shape


@pytest.mark.parametrize(("shape", "size"), [((2, 3, 0, 4), (2, 2)), ((2, 3, 4, 4), (0, 2)), ((4, 4), (2, 2))], ids=str)
def test_refuses(shape, size):
    with pytest.raises(ValueError, match="cannot pool"):
        own_op.adaptive_max_pool2d(torch.zeros(shape), size)


@pytest.mark.parametrize(
    "x", [torch.randn(2, 3, 7, 5), torch.randn(2, 7, 5, requires_grad=True)], ids=["plain", "leaf"]
)
def test_opcheck(x):
    y, index = own_op.pool(x, 3, 2)
    for operator, arguments in ((own_op.pool, (x, 3, 2)), (own_op.scatter, (y.detach(), index, 7, 5))):
        assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


def test_opcheck_notices_a_wrong_shape_rule():
    @torch.library.custom_op("own_wrong::pool", mutates_args=())
    def wrong(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return x.new_zeros(height, width)

    wrong.register_fake(lambda x, height, width: x.new_zeros(width, height))
    with pytest.raises(Exception, match="are not equal"):
        torch.library.opcheck(wrong, (torch.randn(7, 5), 3, 2))


def test_gradcheck():
    # All values far from each other: where two are equal, the maximum has no derivative.
    x = torch.randperm(2 * 5 * 7).reshape(1, 2, 5, 7).double().requires_grad_()
    for size in [(3, 4), (8, 9)]:
        assert torch.autograd.gradcheck(lambda t, size=size: own_op.adaptive_max_pool2d(t, size), x)


def test_compiles_without_a_break():
    compiled = torch.compile(own_op.adaptive_max_pool2d, backend="aot_eager", fullgraph=True)
    for shape in [(2, 3, 9, 11), (2, 3, 8, 7), (5, 3, 13, 4)]:
        x = torch.randn(shape)
        grad_output = torch.randn(*shape[:2], 4, 3)
        results = (with_gradient(f, x, (4, 3), grad_output) for f in (compiled, own_op.adaptive_max_pool2d))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_cuda_kernels_in_the_simulator():
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") == len(SIZES)


def simulate():
    """Compare the CUDA kernels, which the simulator runs, with torch."""
    for H, W, oH, oW in SIZES:
        x = torch.randn(2, H, W, requires_grad=True)
        want, want_index = native(x, (oH, oW), return_indices=True)
        grad_output = torch.randn_like(want)
        (want_grad,) = torch.autograd.grad(want, x, grad_output)
        y, index = np.empty(want.shape, np.float32), np.empty(want.shape, np.int64)
        grad = np.zeros(x.shape, np.float32)
        own_op.pool_outputs[-(-y.size // 32), 32](x.detach().numpy(), y, index)
        own_op.gather_inputs[-(-grad.size // 32), 32](grad_output.numpy(), index, grad)
        assert torch.equal(torch.from_numpy(y), want)
        assert torch.equal(torch.from_numpy(index), want_index)
        assert_close(torch.from_numpy(grad), want_grad)
        print("equal")


def test_cuda_kernels_compile_to_ptx(monkeypatch):
    """A device function is compiled for the GPU that is there; here, one is claimed to be."""
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    import numba.cuda.dispatcher
    from numba import cuda, types

    gpu = SimpleNamespace(compute_capability=(8, 0))
    monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: gpu)
    values, index = (types.Array(kind, 3, "C") for kind in (types.float32, types.int64))
    for kernel, arguments in [
        (own_op.pool_outputs, (values, values, index)),
        (own_op.gather_inputs, (values, index, values)),
    ]:
        ptx, _ = cuda.compile_ptx(kernel.py_func, types.void(*arguments), cc=(8, 0))
        assert not re.search(r"\b(atom|red)\.|\.f64\b", ptx)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_on_a_gpu(dtype):
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
    for H, W, oH, oW in SIZES:
        check(torch.randn(2, 3, H, W, dtype=dtype, device="cuda"), (oH, oW), **tolerance)
    assert own_op.adaptive_max_pool2d(torch.zeros(0, 3, 4, 4, device="cuda"), (2, 2)).shape == (0, 3, 2, 2)


def code_lines(text):
    return len([line for line in text.splitlines() if line.strip()])


def test_as_short_as_its_chapter_says():
    text = SOURCE.read_text(encoding="utf-8")
    cpu, gpu = text.split("# The same for CUDA.")
    assert code_lines(cpu) <= 80
    assert code_lines(gpu) <= 40
    assert max(map(len, text.splitlines())) <= 79
    assert not re.search(r"\._[a-z]|import _", text)


def test_chapter_prints_the_file():
    """Every part of the file is a part of the chapter's cells, word for word, in the same order."""
    chapter = (ROOT / "book" / "how" / "own_op.md").read_text(encoding="utf-8")
    cells = "\n\n\n".join(re.findall(r"^```\{code-cell\}.*\n((?:.*\n)*?)^```$", chapter, re.MULTILINE))
    place = 0
    for part in SOURCE.read_text(encoding="utf-8").split('"""\n\n', 1)[1].split("\n\n\n"):
        for piece in part.strip().split("\n\n") if part.startswith(("import", "#")) else [part.strip()]:
            code = re.sub(r"^#.*\n", "", piece)
            found = cells.find(code, place)
            assert found >= 0, f"not in the chapter, or not in this order:\n{code}"
            place = found + len(code)


if __name__ == "__main__":
    simulate()
