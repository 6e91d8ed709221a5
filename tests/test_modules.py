"""The module, and swapping torch's layers for ours inside a model."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, exact_pool
from torch import nn

from numba_pool import (
    AdaptiveAvgPool2d,
    adaptive_avg_pool2d,
    convert_adaptive_avg_pool2d,
    functional,
    override_adaptive_avg_pool2d,
)

X = torch.ones(2, 3, 7, 9)


@pytest.mark.parametrize("output_size", [1, (4, 5), (None, 3), 11], ids=str)
def test_the_module_is_the_function(output_size):
    input = torch.randn_like(X)
    layer = AdaptiveAvgPool2d(output_size)
    assert layer(input).equal(adaptive_avg_pool2d(input, output_size))
    assert isinstance(layer, nn.AdaptiveAvgPool2d)
    assert layer.output_size == output_size
    assert repr(layer) == repr(nn.AdaptiveAvgPool2d(output_size))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_pool_alike(duplicate):
    layer = duplicate(AdaptiveAvgPool2d((4, 5)))
    assert type(layer) is AdaptiveAvgPool2d
    assert layer(X).shape == (2, 3, 4, 5)


def test_checkpoints_of_torchs_layer_load():
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), AdaptiveAvgPool2d(1))
    assert not AdaptiveAvgPool2d(1).state_dict()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_close(ours(X), *exact_pool(ours[0](X), 1))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_holds_torchs_op():
    """TorchScript cannot call Numba's kernels; the saved program runs without the package."""
    scripted = torch.jit.script(nn.Sequential(AdaptiveAvgPool2d((4, 5)), nn.ReLU()))
    assert "adaptive_avg_pool2d" in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(X), nn.AdaptiveAvgPool2d((4, 5))(X))


class Model(nn.Module):
    """A model with layers at several depths, one of them used twice, and a subclass that pools in its own way."""

    class Doubled(nn.AdaptiveAvgPool2d):
        def forward(self, input):
            return 2 * super().forward(input)

    def __init__(self):
        super().__init__()
        self.shared = nn.AdaptiveAvgPool2d((4, 5))
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Identity(), self.shared), nn.ModuleDict({"pool": nn.AdaptiveAvgPool2d(2)})]
        )
        self.doubled = self.Doubled(1)
        self.regular = nn.AvgPool2d(1)

    def forward(self, x):
        x = self.blocks[0](self.shared(x))
        return self.regular(self.doubled(self.blocks[1]["pool"](x)))


def test_convert_a_model():
    model = Model().eval()
    before = model(X)
    names, children = dict(model.named_modules()), list(model.modules())
    heard = []
    model.shared.register_forward_hook(lambda layer, *_: heard.append(type(layer)))
    model.shared.note = "kept"

    assert convert_adaptive_avg_pool2d(model) is model
    assert model.shared is model.blocks[0][1]
    kinds = {name: type(layer) for name, layer in model.named_modules()}
    assert kinds["shared"] is kinds["blocks.1.pool"] is AdaptiveAvgPool2d
    assert kinds["doubled"] is Model.Doubled
    assert kinds["regular"] is nn.AvgPool2d
    assert dict(model.named_modules()) == names
    assert list(model.modules()) == children
    assert (model.shared.output_size, model.shared.note, model.shared.training) == ((4, 5), "kept", False)
    torch.testing.assert_close(model(X), before)
    assert heard == [AdaptiveAvgPool2d] * 2
    # Again, nothing is left to do.
    assert {name: type(layer) for name, layer in convert_adaptive_avg_pool2d(model).named_modules()} == kinds


def test_convert_a_bare_layer():
    layer = nn.AdaptiveAvgPool2d(3)
    assert convert_adaptive_avg_pool2d(layer) is layer
    assert type(layer) is AdaptiveAvgPool2d
    assert layer(X).shape == (2, 3, 3, 3)


@pytest.mark.parametrize(
    "wrong", [None, nn.AdaptiveAvgPool2d, [nn.AdaptiveAvgPool2d(1)], X], ids=["None", "class", "list", "tensor"]
)
def test_convert_takes_modules_alone(wrong):
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, not (NoneType|type|list|Tensor)"):
        convert_adaptive_avg_pool2d(wrong)


class CallsTheFunction(nn.Module):
    """A model with no layer to convert, and one layer that calls the function too."""

    def __init__(self):
        super().__init__()
        self.convolution, self.layer = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((None, 2))

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.convolution(x).relu(), output_size=(3, 4))
        return self.layer(x).flatten(1)


@pytest.fixture
def pooled(monkeypatch):
    """Return a list of the output sizes that our function is called with."""
    sizes, pool = [], functional.pool
    monkeypatch.setattr(functional, "pool", lambda input, size: sizes.append(size) or pool(input, size))
    return sizes


def test_override_reaches_functions_and_layers(pooled):
    """Forward and backward, of a model that converting leaves unchanged but for its layer."""
    model = CallsTheFunction()
    expected = model(X)
    gradients = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    assert not pooled
    with override_adaptive_avg_pool2d():
        output = model(X)
    assert pooled == [(3, 4), (3, 2)]
    torch.testing.assert_close(output, expected)
    ours = torch.autograd.grad(output.square().sum(), list(model.parameters()))
    torch.testing.assert_close(ours, gradients)


def test_override_ends_with_its_context(pooled):
    """After an error too; contexts nest."""
    with override_adaptive_avg_pool2d():
        with pytest.raises(RuntimeError), override_adaptive_avg_pool2d():
            F.adaptive_avg_pool2d(X, -1)
        F.adaptive_avg_pool2d(X, 3)
    F.adaptive_avg_pool2d(X, 4)
    assert pooled == [(3, 3)]


def test_override_changes_nothing_else(pooled):
    """Neither other functions, nor torch's own name of this one, nor other threads."""
    native, outputs = F.adaptive_avg_pool2d, []
    with override_adaptive_avg_pool2d():
        assert F.adaptive_avg_pool2d is native
        assert F.adaptive_max_pool2d(X, 2).equal(torch.ones(2, 3, 2, 2))
        other = threading.Thread(target=lambda: outputs.append(F.adaptive_avg_pool2d(X, 2)))
        other.start()
        other.join()
    assert outputs[0].equal(torch.ones(2, 3, 2, 2))
    assert not pooled


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_override_a_compiled_model(backend):
    """The graph holds our operator within the context, and torch's outside of it."""
    model, graphs = CallsTheFunction(), []

    def keep(graph, inputs):
        graphs.append(str(graph.graph))
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=keep, fullgraph=True)
    expected = model(X)
    torch.testing.assert_close(compiled(X), expected)
    with override_adaptive_avg_pool2d():
        output = compiled(X)
    torch.testing.assert_close(output, expected)
    assert ["numba_pool" in graph for graph in graphs] == [False, True]
    gradients = (torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in (output, expected))
    torch.testing.assert_close(*gradients)
    torch._dynamo.reset()
