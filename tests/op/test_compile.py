# Torch's stubs know less than these tests do.
# mypy: ignore-errors
"""Tracers, compilers, exporters, and tensors that are not plain tensors."""

import copy
import io
import shutil
from typing import ClassVar

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from numba_pool import AdaptiveAvgPool2d, adaptive_avg_pool2d
from numba_pool.reference import backward as exact_backward

FORWARD = torch.ops.numba_pool.adaptive_avg_pool2d.default
BACKWARD = torch.ops.numba_pool.adaptive_avg_pool2d_backward.default

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch's default backend needs a C++ compiler")
each_backend = pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=[needs_compiler, pytest.mark.slow])]
)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    # Its cache on disk does not notice when an operator's Python code changes.
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


class Net(nn.Module):
    """A convolution on either side, so that a compiler has something to fuse and a gradient to hand on."""

    def __init__(self, pool):
        super().__init__()
        self.first, self.pool, self.last = nn.Conv2d(3, 4, 3), pool, nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.pool(self.first(x).relu()))


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (FORWARD, (torch.randn(2, 3, 7, 5), [3, 2])),
        (FORWARD, (torch.randn(2, 3, 7, 5, requires_grad=True), [3, 2])),
        (FORWARD, (channels_last(torch.randn(2, 3, 7, 5)).requires_grad_(), [3, 2])),
        (FORWARD, (torch.randn(3, 4, 4, dtype=torch.float64), [9, 9])),
        (FORWARD, (torch.randn(2, 3, 7, 5).half(), [7, 5])),
        (FORWARD, (torch.randn(0, 3, 7, 5), [1, 1])),
        (FORWARD, (torch.randn(2, 3, 7, 5), [0, 2])),
        (BACKWARD, (torch.randn(2, 3, 3, 2), [7, 5], False)),
        (BACKWARD, (torch.randn(2, 3, 3, 2, requires_grad=True), [7, 5], True)),
        (BACKWARD, (torch.randn(3, 3, 2).bfloat16(), [7, 5], True)),
        (BACKWARD, (torch.randn(1, 1, 2, 2).expand(4, 3, 2, 2), [2, 2], False)),
    ],
)
def test_opcheck(operator, arguments):
    results = torch.library.opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("pool", [AdaptiveAvgPool2d(2), lambda x: adaptive_avg_pool2d(x, 2)], ids=["layer", "function"])
def test_compiled_graphs_hold_the_operator(pool):
    graphs = []

    def keep(graph, inputs):
        graphs.append([name for name in operators(graph.graph) if "adaptive" in name])
        return graph

    torch.compile(pool, backend=keep, fullgraph=True)(torch.randn(2, 3, 7, 5))
    assert graphs == [["numba_pool.adaptive_avg_pool2d.default"]]


@each_backend
@pytest.mark.parametrize("output_size", [(3, 2), 1, (None, 9)], ids=str)
def test_compiled_training(backend, output_size):
    """Forward and gradients equal eager mode's, in one graph, for a contiguous and a channels_last input."""
    net = Net(AdaptiveAvgPool2d(output_size))
    compiled = torch.compile(net, backend=backend, fullgraph=True, dynamic=False)
    for x in (torch.randn(2, 3, 9, 7), channels_last(torch.randn(2, 3, 9, 7))):
        results = []
        for model in (net, compiled):
            net.zero_grad()
            output = model(x)
            output.pow(2).sum().backward()
            results.append([output.detach(), *(p.grad.clone() for p in net.parameters())])
        assert_close(results[1], results[0])
    with torch.no_grad():
        assert_close(compiled(x), net(x))


@each_backend
def test_dynamic_shapes(backend):
    """One graph for every size: no second compilation."""
    compilations = CompileCounterWithBackend(backend)
    compiled = torch.compile(
        lambda x: adaptive_avg_pool2d(x.sin(), (3, 2)).cos(), backend=compilations, fullgraph=True, dynamic=True
    )
    for shape in ((2, 3, 7, 5), (4, 2, 12, 8), (3, 5, 4, 64)):
        x = torch.randn(shape, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        output, expected = compiled(x), F.adaptive_avg_pool2d(y.sin(), (3, 2)).cos()
        assert_close(output, expected)
        assert_close(torch.autograd.grad(output.sum(), x), torch.autograd.grad(expected.sum(), y))
    assert compilations.frame_count == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_output_size_of_a_traced_shape(backend):
    compiled = torch.compile(
        lambda x: adaptive_avg_pool2d(x, (x.shape[-2] // 2, x.shape[-1])), backend=backend, fullgraph=True, dynamic=True
    )
    for shape in ((2, 3, 8, 5), (1, 3, 13, 6)):
        x = torch.randn(shape)
        assert_close(compiled(x), F.adaptive_avg_pool2d(x, (shape[-2] // 2, shape[-1])))


@each_backend
@pytest.mark.parametrize(
    "computation",
    [
        lambda f, x, v: jvp(lambda a: f(a, (3, 2)).sin(), (x,), (v,)),
        lambda f, x, v: vmap(grad(lambda a: f(a, (3, 2)).sin().sum()))(x),
        lambda f, x, v: grad(lambda b: grad(lambda a: f(a, (3, 2)).sin().sum())(b).pow(2).sum())(x),
    ],
    ids=["jvp", "vmap of grad", "grad of grad"],
)
def test_compiled_transforms(backend, computation):
    x, v = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 7, 5)
    compiled = torch.compile(lambda x, v: computation(adaptive_avg_pool2d, x, v), backend=backend, fullgraph=True)
    assert_close(compiled(x, v), computation(F.adaptive_avg_pool2d, x, v))


def test_compiled_autograd():
    """The graph of an eager forward, with its backward compiled."""
    x = torch.randn(2, 3, 7, 5, requires_grad=True)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        adaptive_avg_pool2d(x, (3, 2)).sin().sum().backward()
    y = x.detach().clone().requires_grad_()
    F.adaptive_avg_pool2d(y, (3, 2)).sin().sum().backward()
    assert_close(x.grad, y.grad)


def test_compiled_errors():
    compiled = torch.compile(adaptive_avg_pool2d, backend="eager")
    with pytest.raises(Exception, match="non-zero size for non-batch dimensions"):
        compiled(torch.randn(2, 3, 0, 5), 2)


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx(tracing_mode):
    """What a trace recorded is right for other numbers too: the kernels' writes are not invisible to it."""

    def step(f, x, v):
        loss, tangent = jvp(lambda a: f(a, (3, 2)).sin().sum(), (x,), (v,))
        return loss, tangent, grad(lambda a: f(a, (3, 2)).sin().sum())(x), vmap(lambda a: f(a, 2))(x)

    traced = make_fx(lambda x, v: step(adaptive_avg_pool2d, x, v), tracing_mode=tracing_mode)(
        torch.zeros(2, 3, 7, 5), torch.zeros(2, 3, 7, 5)
    )
    x, v = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 7, 5)
    assert_close(traced(x, v), step(F.adaptive_avg_pool2d, x, v))
    assert "numba_pool.adaptive_avg_pool2d.default" in traced.code


def operators(graph):
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("batch", [None, {"x": {0: torch.export.Dim("batch")}}], ids=["static", "dynamic"])
def test_export_holds_the_native_operator(strict, batch):
    net, x = Net(AdaptiveAvgPool2d((2, 3))).eval(), torch.randn(3, 3, 9, 9)
    program = torch.export.export(net, (x,), strict=strict, dynamic_shapes=batch)
    assert "aten.adaptive_avg_pool2d.default" in operators(program.graph)
    file = io.BytesIO()
    torch.export.save(program, file)
    assert b"numba_pool::" not in file.getvalue()
    file.seek(0)
    assert_close(torch.export.load(file).module()(x), net(x))
    assert not [name for name in operators(program.run_decompositions().graph) if "numba" in name]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "tracing"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx(dynamo):
    """The exported program stands on its own; its numbers are the layer's."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    from onnx.reference import ReferenceEvaluator

    # The tracing exporter knows sizes that divide the input's.
    net, x = Net(AdaptiveAvgPool2d(1)).eval(), torch.randn(2, 3, 9, 9)
    file = io.BytesIO()
    torch.onnx.export(net, (x,), file, dynamo=dynamo, verbose=False)
    model = onnx.load_from_string(file.getvalue())
    assert not [node for node in model.graph.node if "numba" in node.domain or "numba" in node.op_type]
    (name,) = [given.name for given in model.graph.input]
    (output,) = ReferenceEvaluator(model).run(None, {name: x.numpy()})
    assert_close(torch.from_numpy(output), net(x).detach(), rtol=1e-4, atol=1e-5)


# What an exporter is shown, and the sizes that the program is then used with.
EXAMPLE, OTHERS = torch.randn(2, 3, 14, 8), (torch.randn(2, 3, 15, 9), torch.randn(1, 3, 7, 30))
ANY_SIZE = {2: torch.export.Dim("H", min=5, max=64), 3: torch.export.Dim("W", min=5, max=64)}


@pytest.mark.parametrize("output_size", [1, (3, 2), (5, 3)], ids=str)
def test_decompositions_are_those_of_the_native_layer(output_size):
    """For a dynamic height and width too."""
    programs = [
        torch.export.export(Net(layer(output_size)).eval(), (EXAMPLE,), dynamic_shapes={"x": ANY_SIZE})
        for layer in (AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d)
    ]
    ours, native = ([str(node) for node in p.run_decompositions().graph.nodes] for p in programs)
    assert ours == native
    assert any("pool" in node or "mean" in node for node in ours)


@pytest.mark.parametrize("output_size", [1, (3, 2), (5, 3)], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_onnx_of_any_size_agrees_with_the_native_layers(output_size):
    """Whatever the exporter makes of a dynamic height and width, right or wrong, it makes the same of both layers."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    from onnx.reference import ReferenceEvaluator

    net = Net(AdaptiveAvgPool2d(output_size)).eval()
    twin = copy.deepcopy(net)
    twin.pool = nn.AdaptiveAvgPool2d(output_size)

    def export(net):
        file = io.BytesIO()
        torch.onnx.export(net, (EXAMPLE,), file, dynamo=True, verbose=False, dynamic_shapes={"x": ANY_SIZE})
        model = onnx.load_from_string(file.getvalue())
        (name,) = [given.name for given in model.graph.input]
        return model, lambda x: torch.from_numpy(ReferenceEvaluator(model).run(None, {name: x.numpy()})[0])

    def outcome(run, x):
        try:
            return run(x)
        except Exception as error:
            return repr(error)

    (model, run), (native_model, native_run) = (export(each) for each in (net, twin))
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in native_model.graph.node]
    assert_close(run(EXAMPLE), net(EXAMPLE).detach(), rtol=1e-4, atol=1e-5)
    for x in OTHERS:
        ours, native = outcome(run, x), outcome(native_run, x)
        assert ours.equal(native) if isinstance(ours, torch.Tensor) else ours == native
        if output_size == 1:  # the one size for which the docstring promises that it is right
            assert_close(ours, net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript():
    """Traced and scripted programs hold the native operator, and run without Python."""
    net, x = Net(AdaptiveAvgPool2d((2, 3))).eval(), torch.randn(2, 3, 9, 9)
    for program in (torch.jit.trace(net, x), torch.jit.script(net)):
        assert "aten::adaptive_avg_pool2d" in str(program.inlined_graph)
        assert "^" not in str(program.inlined_graph)  # what a call into Python looks like
        assert_close(program(x), net(x))


def test_symbolic_trace():
    """The function and the module both stay one node, and run."""
    x = torch.randn(2, 3, 9, 7)
    traced = torch.fx.symbolic_trace(Net(AdaptiveAvgPool2d((2, 3))))
    assert [n.op for n in traced.graph.nodes if "pool" in n.name] == ["call_function"]
    assert_close(traced(x), traced.last(F.adaptive_avg_pool2d(traced.first(x).relu(), (2, 3))))
    traced = torch.fx.symbolic_trace(lambda x: adaptive_avg_pool2d(x.sin(), (x.shape[-1], 2)))
    assert_close(traced(x), F.adaptive_avg_pool2d(x.sin(), (7, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [lambda x: x, channels_last, lambda x: x[:, 0], lambda x: x[..., ::2]])
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_tensors_without_values(kind, layout, dtype):
    """Shape, dtype, device and strides are those of the real call, forward and backward."""
    real = layout(torch.randn(2, 3, 9, 8, dtype=dtype))
    mode = FakeTensorMode()
    virtual = real.to("meta") if kind == "meta" else mode.from_tensor(real)
    with mode if kind == "fake" else torch.enable_grad():
        outputs = []
        for x in (virtual, real):
            if x is real and kind == "fake":
                mode.__exit__(None, None, None)
            x = x.detach().requires_grad_()
            output = adaptive_avg_pool2d(x, (3, 2))
            (gradient,) = torch.autograd.grad(output.sum(), x)
            outputs.append((output, gradient))
            if x.requires_grad and outputs[0] is outputs[-1]:
                assert output.device.type == ("meta" if kind == "meta" else "cpu")
        if kind == "fake":
            mode.__enter__()
    for a, b in zip(*outputs, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


class Logged(torch.Tensor):
    """A subclass that sees each function that it meets."""

    seen: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_torch_function():
    """A subclass meets our function as one call, and comes out of it as itself, with its gradient."""
    x = torch.randn(2, 3, 7, 5).as_subclass(Logged).requires_grad_()
    Logged.seen.clear()
    output = adaptive_avg_pool2d(x, (3, 2))
    assert Logged.seen[0] is adaptive_avg_pool2d
    assert type(output) is Logged
    output.sum().backward()
    plain = x.detach().as_subclass(torch.Tensor).clone().requires_grad_()
    F.adaptive_avg_pool2d(plain, (3, 2)).sum().backward()
    assert_close(x.grad.as_subclass(torch.Tensor), plain.grad)

    class Other:
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return func, args, kwargs

    assert adaptive_avg_pool2d(Other(), 7)[0] is adaptive_avg_pool2d


class Scaled(torch.Tensor):
    """A wrapper with no memory of its own: twice the tensor inside."""

    seen: ClassVar[list] = []

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())

    def __init__(self, inner):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        args = [a.inner if isinstance(a, cls) else a for a in args]
        return cls(func(*args, **(kwargs or {})))


def test_torch_dispatch():
    """A wrapper subclass gets the operator, forward and backward."""
    inner = torch.randn(2, 3, 7, 5)
    x = Scaled(inner).requires_grad_()
    output = adaptive_avg_pool2d(x, (3, 2))
    assert type(output) is Scaled
    assert_close(output.inner, F.adaptive_avg_pool2d(inner, (3, 2)))
    output.backward(Scaled(torch.ones(2, 3, 3, 2)))
    assert Scaled.seen[0] is FORWARD
    assert BACKWARD in Scaled.seen
    expected = torch.from_numpy(exact_backward(torch.ones(2, 3, 3, 2).numpy(), (7, 5)))
    assert_close(x.grad.inner, expected)


def test_dispatch_modes():
    """A mode that counts operators sees ours once."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        seen: ClassVar[list] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 3, 7, 5)
    with Count() as mode:
        output = adaptive_avg_pool2d(x, (3, 2))
    assert mode.seen == [FORWARD]
    assert_close(output, F.adaptive_avg_pool2d(x, (3, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_autocast_leaves_the_dtype(dtype):
    x = torch.randn(2, 3, 7, 5, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for f in (adaptive_avg_pool2d, F.adaptive_avg_pool2d):
            assert f(x, (3, 2)).dtype == dtype
        net = Net(AdaptiveAvgPool2d((3, 2)))
        output = net(torch.randn(2, 3, 9, 9))
        assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert net.first.weight.grad.abs().sum() > 0


def test_no_grad_and_inference_mode():
    x = torch.randn(2, 3, 7, 5, requires_grad=True)
    with torch.no_grad():
        output = adaptive_avg_pool2d(x, (3, 2))
    assert output.grad_fn is None
    assert output.is_leaf
    with torch.inference_mode():
        y = torch.randn(2, 3, 7, 5)
        inside = [adaptive_avg_pool2d(t, (3, 2)) for t in (x, y, channels_last(y).bfloat16(), y[0])]
        assert all(t.is_inference() for t in inside)
        inside[0].add_(1)
        assert_close(inside[1], F.adaptive_avg_pool2d(y, (3, 2)))
    # An inference tensor from outside its mode: pooled, but no graph goes through it.
    assert_close(adaptive_avg_pool2d(y, (3, 2)), F.adaptive_avg_pool2d(y, (3, 2)))
    assert adaptive_avg_pool2d(inside[1], 1).shape == (2, 3, 1, 1)
    with pytest.raises(RuntimeError, match="inference"):
        y.requires_grad_()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant):
    from torch.utils.checkpoint import checkpoint

    net, x = Net(AdaptiveAvgPool2d((3, 2))), torch.randn(2, 3, 9, 9, requires_grad=True)
    (expected,) = torch.autograd.grad(net(x).sin().sum(), x)
    output = checkpoint(net, x, use_reentrant=use_reentrant)
    output.sin().sum().backward()
    assert_close(x.grad, expected)


def test_hooks():
    """On the module, on the output, and on the graph's node; in-place work on the output is allowed."""
    layer, x, calls = AdaptiveAvgPool2d((3, 2)), torch.randn(2, 3, 7, 5, requires_grad=True), []
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_full_backward_hook(lambda m, gi, go: calls.append((gi[0].shape, go[0].shape)))
    output = layer(x)
    output.register_hook(lambda g: 2 * g)
    output.grad_fn.register_hook(lambda *_: calls.append("node"))
    output.relu().sum().backward()
    assert calls[:2] == ["before", "after"]
    assert (x.shape, output.shape) in calls
    assert "node" in calls


def test_share_memory():
    """A module and a tensor in shared memory work as before."""
    net = Net(AdaptiveAvgPool2d((3, 2))).share_memory()
    x = torch.randn(2, 3, 9, 9).share_memory_()
    assert_close(adaptive_avg_pool2d(x, (3, 2)), F.adaptive_avg_pool2d(x, (3, 2)))
    net(x).sum().backward()


def test_saving():
    """pickle (torch.save), a copy, and a state_dict: the layer has no state of its own."""
    net, x = Net(AdaptiveAvgPool2d((3, None))), torch.randn(2, 3, 9, 9)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (torch.load(file, weights_only=False), copy.deepcopy(net)):
        assert type(twin.pool) is AdaptiveAvgPool2d
        assert_close(twin(x), net(x))
    native = Net(nn.AdaptiveAvgPool2d((3, None)))
    native.load_state_dict(net.state_dict(), strict=True)
    assert_close(native(x), net(x))
    output = adaptive_avg_pool2d(x, 2)
    file = io.BytesIO()
    torch.save(output, file)
    file.seek(0)
    assert_close(torch.load(file), output)
    assert_close(copy.deepcopy(output), output)
