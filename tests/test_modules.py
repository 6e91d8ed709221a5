"""The module, and swapping torch's layers for ours inside a model."""

import copy
import pickle

import pytest
import torch
from helpers import assert_close, exact_pool
from torch import nn

from numba_pool import AdaptiveAvgPool2d, adaptive_avg_pool2d, convert_adaptive_avg_pool2d

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
