"""Real networks with random weights: after the swap they compute the same, and learn the same."""

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import numba_pool.functional
from numba_pool import AdaptiveAvgPool2d, convert_adaptive_avg_pool2d, override_adaptive_avg_pool2d

pytestmark = pytest.mark.models

# Name and the smallest square picture that the network takes comfortably. All hold the layer.
TORCHVISION = {
    "alexnet": 64,  # (6, 6) out of 1x1: the output is larger than the input
    "vgg11": 64,  # (7, 7)
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "densenet121": None,  # calls the function: nothing to swap
    "squeezenet1_1": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mobilenet_v2": None,  # calls it too
    "mnasnet0_5": None,  # takes the mean
    "mobilenet_v3_small": 64,  # squeeze and excitation too
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "convnext_tiny": 64,
}
SEGMENTATION = {"deeplabv3_mobilenet_v3_large": 64, "lraspp_mobilenet_v3_large": 64}
TIMM = {"dpn48b": 64, "hrnet_w18_small": 64, "rexnet_100": 64, "cspresnet50": 64}


def _torchvision():
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pytest.skip("needs torchvision (the extra `models`)")
    except RuntimeError:
        # Made for another build of torch, it has none of its own operators and stumbles over them. No network here
        # calls one.
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        return importlib.import_module("torchvision")


def _build(family, name):
    torchvision = _torchvision()
    if family == "timm":
        return pytest.importorskip("timm", reason="needs timm (the extra `models`)").create_model(name, num_classes=10)
    if family == "segmentation":
        return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=10)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name == "inception_v3":
        extra["aux_logits"] = False  # needs pictures of 299x299
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **extra)
    if name in ("alexnet", "vgg11"):
        model.classifier = nn.Identity()  # a gigabyte of weights, after the layer
    return model


def _outputs(model, x):
    output = model(x)
    if isinstance(output, dict):
        return output["out"]
    return output if isinstance(output, torch.Tensor) else output[0]


def _train(model, x, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)  # for dropout
        optimizer.zero_grad()
        loss = _outputs(model, x).pow(2).mean()
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return losses, gradients, [p.detach() for p in model.parameters()]


CASES = [
    *(("torchvision", name, size) for name, size in TORCHVISION.items() if size),
    *(("segmentation", name, size) for name, size in SEGMENTATION.items()),
    *(("timm", name, size) for name, size in TIMM.items()),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "name", "size"), CASES, ids=[name for _, name, _ in CASES])
def test_converted_network(family, name, size):
    """In float64, so that rounding is all that may differ."""
    original = _build(family, name).double()
    swapped = convert_adaptive_avg_pool2d(copy.deepcopy(original))
    before = [m for m in original.modules() if type(m) is nn.AdaptiveAvgPool2d]
    after = [m for m in swapped.modules() if type(m) is AdaptiveAvgPool2d]
    assert len(after) == len(before) > 0
    assert not [m for m in swapped.modules() if type(m) is nn.AdaptiveAvgPool2d]
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        assert_close(_outputs(swapped.eval(), x), _outputs(original.eval(), x), rtol=1e-9, atol=1e-10)
    assert_learn_alike((swapped.train(), original.train()), x)


def assert_learn_alike(models, x):
    ours, native = (_train(model, x, steps=3) for model in models)
    for mine, theirs in zip(ours, native, strict=True):
        assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


class Within(nn.Module):
    """A model, called within the context that overrides torch's function."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with override_adaptive_avg_pool2d():
            return self.model(x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", [None, "aot_eager"], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "resnet18"])
def test_overridden_network(name, backend, monkeypatch):
    """Those that call the function, and one that holds the layer, which calls it."""
    original = _build("torchvision", name).double()
    model, pooled = copy.deepcopy(original), []
    if backend:
        torch._dynamo.reset()
        model = torch.compile(model, backend=_noting(pooled, backend))
    else:
        pool = numba_pool.functional.pool
        monkeypatch.setattr(numba_pool.functional, "pool", lambda *given: pooled.append(given) or pool(*given))
    ours = Within(model)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert_close(ours.eval()(x), original.eval()(x), rtol=1e-9, atol=1e-10)
    assert pooled
    assert_learn_alike((ours.train(), original.train()), x)


def _noting(pooled, backend):
    """Return a backend of torch.compile that notes where a graph holds our operator."""

    def compile_graph(graph, inputs):
        pooled.extend(node for node in graph.graph.nodes if "numba_pool" in str(node.target))
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    return compile_graph


def test_networks_that_do_not_hold_the_layer_stay():
    """Those call the function, or take the mean; converting them changes nothing."""
    for name in (name for name, size in TORCHVISION.items() if size is None):
        model = _build("torchvision", name)
        assert not [m for m in convert_adaptive_avg_pool2d(model).modules() if isinstance(m, nn.AdaptiveAvgPool2d)]
