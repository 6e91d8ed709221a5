# Torch's stubs know less than these tests do.
# mypy: disable-error-code="arg-type, misc"
"""Derivatives of every kind, and what torch.func makes of the layer: always the numbers of torch's own op."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.autograd.gradcheck import GradcheckError
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.testing import assert_close
from torch.testing._internal.common_methods_invocations import op_db

from numba_pool import adaptive_avg_pool2d
from numba_pool.op import autograd

# Input shape and output size: windows that overlap, an output larger than the input, 1x1, the same size, unbatched.
CASES = [
    ((2, 2, 7, 5), (3, 2)),
    ((1, 2, 2, 3), (5, 4)),
    ((2, 1, 4, 6), (1, 1)),
    ((1, 2, 3, 3), (3, 3)),
    ((2, 5, 4), (2, 3)),
]
NAMES = ["overlap", "larger", "1x1", "same", "unbatched"]
each_case = pytest.mark.parametrize(("shape", "output_size"), CASES, ids=NAMES)
each_format = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
(OPINFO,) = (op for op in op_db if op.name == "nn.functional.adaptive_avg_pool2d")


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def same(computation, *arguments):
    """Hold what a computation makes of our function to what it makes of torch's, and show that it makes something."""
    ours, native = computation(adaptive_avg_pool2d, *arguments), computation(F.adaptive_avg_pool2d, *arguments)
    assert_close(ours, native)
    tensors = native if isinstance(native, tuple) else (native,)
    assert all(t.numel() == 0 or t.count_nonzero() for t in tensors)


@each_case
def test_gradcheck(shape, output_size):
    """All of its checks, and it tells a wrong gradient."""
    x = double(*shape).requires_grad_()
    pool = partial(adaptive_avg_pool2d, output_size=output_size)
    first = {"check_undefined_grad": True, "check_grad_dtypes": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(
        pool, x, check_forward_ad=True, check_backward_ad=True, check_batched_forward_grad=True, **first
    )
    assert torch.autograd.gradgradcheck(pool, x, check_fwd_over_rev=True, check_rev_over_rev=True, **first)
    assert torch.autograd.gradcheck(pool, x, fast_mode=True, check_forward_ad=True)


def test_gradcheck_tells_a_wrong_gradient(monkeypatch):
    right = autograd.pool_backward
    monkeypatch.setattr(autograd, "pool_backward", lambda *arguments: right(*arguments) * 1.01)
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(partial(adaptive_avg_pool2d, output_size=2), double(1, 1, 3, 3).requires_grad_())


@each_format
def test_gradcheck_of_a_layout(memory_format):
    x = double(2, 3, 5, 4).contiguous(memory_format=memory_format).requires_grad_()
    pool = partial(adaptive_avg_pool2d, output_size=(3, 3))
    assert torch.autograd.gradcheck(pool, x)
    (gradient,) = torch.autograd.grad(pool(x).pow(2).sum(), x, create_graph=True)
    assert gradient.is_contiguous(memory_format=memory_format)
    (second,) = torch.autograd.grad(gradient.pow(2).sum(), x)
    assert second.is_contiguous(memory_format=memory_format)


def _vjp(q, x):
    output, pull = vjp(q, x)
    return output, *pull(output.cos())


FIRST = {
    "grad": lambda q, x, v: grad(lambda a: q(a).sin().sum())(x),
    "vjp": lambda q, x, v: _vjp(q, x),
    "jvp": lambda q, x, v: jvp(q, (x,), (v,)),
    "linearize": lambda q, x, v: linearize(q, x)[1](v),
    "jacrev": lambda q, x, v: jacrev(q)(x),
    "jacfwd": lambda q, x, v: jacfwd(q)(x),
    "hessian": lambda q, x, v: hessian(lambda a: q(a).pow(3).sum())(x),
    "grad of grad": lambda q, x, v: grad(lambda b: grad(lambda a: q(a).sin().sum())(b).pow(3).sum())(x),
    "jvp of grad": lambda q, x, v: jvp(grad(lambda a: q(a).sin().sum()), (x,), (v,)),
    "grad of jvp": lambda q, x, v: grad(lambda a: jvp(lambda b: q(b).sin(), (a,), (v,))[1].sum())(x),
    "jvp of jvp": lambda q, x, v: jvp(lambda a: jvp(lambda b: q(b).sin(), (a,), (v,))[1], (x,), (v,)),
    "third": lambda q, x, v: grad(
        lambda c: grad(lambda b: grad(lambda a: q(a).sin().sum())(b).sin().sum())(c).sin().sum()
    )(x),
    "functionalize": lambda q, x, v: functionalize(grad(lambda a: q(a).sin().sum()))(x),
    "functional.jacobian": lambda q, x, v: torch.autograd.functional.jacobian(q, x, vectorize=True),
    "functional.jacobian, forward": lambda q, x, v: torch.autograd.functional.jacobian(
        q, x, vectorize=True, strategy="forward-mode"
    ),
    "functional.hvp": lambda q, x, v: torch.autograd.functional.hvp(lambda a: q(a).pow(3).sum(), x, v),
    "functional.vjp": lambda q, x, v: torch.autograd.functional.vjp(q, x, q(x)),
}


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch's, in linearize
@pytest.mark.parametrize("name", FIRST)
def test_torch_func(name):
    for shape, output_size in CASES:
        same(lambda f, x, v, o=output_size: FIRST[name](lambda a: f(a, o), x, v), double(*shape), double(*shape))


@pytest.mark.parametrize("in_dim", range(-5, 5))
def test_vmap_over_every_dimension(in_dim):
    x = double(2, 3, 4, 5, 6)
    same(lambda f: vmap(lambda a: f(a, (2, 3)), in_dims=in_dim)(x))
    same(lambda f: vmap(grad(lambda a: f(a, (2, 3)).sin().sum()), in_dims=in_dim)(x))
    y = x[0]
    if -4 <= in_dim < 4:
        same(lambda f: vmap(lambda a: f(a, 2), in_dims=in_dim, out_dims=-1)(y))


B = (3, 2, 2, 5, 4)
VMAPS = {
    "in_dims None": lambda f, b: vmap(lambda a, s: f(a, 2) * s, in_dims=(None, 0))(b[0], b[:, 0, 0, 0, 0]),
    "only the gradient": lambda f, b: vmap(vjp(lambda a: f(a, 2), b[0])[1])(b[..., :2, :2])[0],
    "nested": lambda f, b: vmap(vmap(lambda a: f(a, 2)))(b),
    "nested, other dims": lambda f, b: vmap(vmap(lambda a: f(a, 2), in_dims=1), in_dims=-1)(b),
    "empty": lambda f, b: vmap(lambda a: f(a, 2))(b[:, :0]),
    "jvp": lambda f, b: vmap(lambda a, v: jvp(lambda z: f(z, 2), (a,), (v,)))(b, b.flip(0)),
    "chunks": lambda f, b: vmap(lambda a: f(a, 2), chunk_size=2)(b),
    "in place": lambda f, b: vmap(lambda a: f(a, 2).mul_(2))(b),
    "jacrev": lambda f, b: vmap(jacrev(lambda a: f(a, 2)))(b),
    "hessian": lambda f, b: vmap(hessian(lambda a: f(a, 2).pow(3).sum()))(b[:, :1, 0]),
    "grad of vmap": lambda f, b: grad(lambda z: vmap(lambda a: f(a, 2).sin())(z).sum())(b),
    "no plane moves": lambda f, b: vmap(lambda a: f(a, (5, 4)))(b),
    "channels_last": lambda f, b: vmap(lambda a: f(a, 2))(b.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)),
}


@pytest.mark.parametrize("name", VMAPS)
def test_vmap(name):
    same(VMAPS[name], double(*B))


@pytest.mark.parametrize("order", [1, 2])
def test_batched_gradients(order):
    """``is_grads_batched`` is torch's older vmap, with tensors of another kind."""

    def batched(f, x, v):
        x = x.clone().requires_grad_()
        output = f(x, (3, 2))
        if order == 2:
            (output,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
        v = v[(..., *map(slice, output.shape[-2:]))]
        return torch.autograd.grad(output, x, v, is_grads_batched=True, create_graph=order == 1)

    same(batched, double(2, 3, 7, 5), double(4, 2, 3, 7, 5))


def test_vmap_of_an_eager_graph():
    def batched(f, x, v):
        output = f(x, (3, 2))
        return vmap(lambda g: torch.autograd.grad(output, x, g, retain_graph=True)[0])(v)

    same(batched, double(2, 3, 7, 5).requires_grad_(), double(4, 2, 3, 3, 2))


def test_a_tensor_that_outlived_its_transform():
    leaked = []

    def leak(x):
        leaked.append(x)
        return F.adaptive_avg_pool2d(x, 2).sum()

    x = torch.randn(2, 3, 5, 7)
    grad(leak)(x)
    jvp(leak, (x,), (x,))
    for tensor in leaked:
        assert_close(adaptive_avg_pool2d(tensor, 2), F.adaptive_avg_pool2d(tensor, 2))


@each_case
def test_forward_mode(shape, output_size):
    """Dual tensors; also with a gradient through the tangent, and without a tangent at all."""

    def dual(f, x, v):
        x, v = x.clone().requires_grad_(), v.clone().requires_grad_()
        with forward_ad.dual_level():
            output = forward_ad.unpack_dual(f(forward_ad.make_dual(x, v), output_size))
            loss = output.primal.sin().sum() + output.tangent.pow(2).sum()
            return output.primal.detach(), output.tangent.detach(), *torch.autograd.grad(loss, (x, v))

    same(dual, double(*shape), double(*shape))
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(adaptive_avg_pool2d(double(*shape), output_size)).tangent is None


def test_forward_over_reverse():
    def mixed(f, x, v):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.requires_grad_(), v)
            (gradient,) = torch.autograd.grad(f(dual, (3, 2)).sin().sum(), dual, create_graph=True)
            return tuple(t.detach() for t in forward_ad.unpack_dual(gradient))

    same(mixed, double(2, 3, 7, 5), double(2, 3, 7, 5))


def test_no_tangent_is_lost_by_the_operator():
    """Torch's ``register_autograd`` would drop it where nothing requires a gradient."""
    operator = torch.ops.numba_pool.adaptive_avg_pool2d
    x, v = double(2, 3, 7, 5), double(2, 3, 7, 5)
    expected = jvp(lambda a: F.adaptive_avg_pool2d(a, (3, 2)), (x,), (v,))
    assert_close(jvp(lambda a: operator(a, (3, 2)), (x,), (v,)), expected)
    with torch.no_grad(), forward_ad.dual_level():
        assert_close(forward_ad.unpack_dual(operator(forward_ad.make_dual(x, v), (3, 2))).tangent, expected[1])
    backward = torch.ops.numba_pool.adaptive_avg_pool2d_backward
    tangent = jvp(lambda g: backward(g, (7, 5), False), expected[:1], expected[1:])[1]
    assert_close(tangent, backward(expected[1], (7, 5), False))


def test_undefined_and_expanded_gradients():
    """A gradient that is not needed is not computed; ``sum()`` hands over one with strides of 0."""
    x = double(2, 3, 7, 5).requires_grad_()
    output = adaptive_avg_pool2d(x, (3, 2))
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert_close(gradient, torch.autograd.grad(F.adaptive_avg_pool2d(x, (3, 2)).sum(), x)[0])
    unused = torch.autograd.grad(adaptive_avg_pool2d(x, 2).detach().requires_grad_().sum(), x, allow_unused=True)
    assert unused == (None,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["forward AD", "vmap", "compile"])
def test_opinfo_samples(way, dtype):
    """Torch's own samples for its op, each way."""
    samples = list(OPINFO.sample_inputs("cpu", dtype))
    assert len(samples) > 5
    for sample in samples:
        x, o = sample.input, sample.args[0]
        if way == "forward AD":
            v = torch.randn_like(x)
            ours, native = (jvp(lambda a: f(a, o), (x,), (v,)) for f in (adaptive_avg_pool2d, F.adaptive_avg_pool2d))  # noqa: B023
            assert_close(ours, native)
        elif way == "vmap":
            assert_close(
                vmap(lambda a, o=o: adaptive_avg_pool2d(a, o), in_dims=-1)(torch.stack((x, 2 * x), -1)),
                torch.stack((F.adaptive_avg_pool2d(x, o), F.adaptive_avg_pool2d(2 * x, o))),
            )
        else:
            torch._dynamo.reset()  # there are more samples than it compiles one function for
            compiled = torch.compile(adaptive_avg_pool2d, backend="aot_eager", fullgraph=True)
            assert_close(compiled(x, o), F.adaptive_avg_pool2d(x, o))
