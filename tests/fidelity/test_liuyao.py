"""The ResNets with a twist are those of liuyao12's notebooks, each at the commit of its figure."""

import re

import pytest
import torch
from torch import nn

from resode.models import create
from resode.operators.twist import TwistConv2d
from tests.fidelity.training import EVALUATED, TRAINED, Golden, assert_close, take, trainer_of

TWISTED = {"name": "twisted", "where": [1, 2, 3], "coordinates": "published", "form": "separate"}
NETWORKS = {
    "34": TWISTED
    | {"of": {"name": "cifar_resnet34", "activated": True, "widths": [2, 4, 8, 8]}, "tie": "conformal"},
    "50": TWISTED | {"of": {"name": "cifar_resnet50", "widths": [2, 4, 8, 8]}, "tie": "odd"},
    "pde": {"name": "pde_resnet", "widths": [4, 8, 16, 16], "blocks": [2, 1, 1, 1]},
}
RECIPES = {"34": "resnet34-twist", "50": "resnet50-twist", "pde": "pde-resnet"}
UNITS = {"34": (2, 1, 1, 1), "50": (1, 1, 1, 1)}
BLOCKS = ("layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0")  # of the network of PDE blocks


def network(name):
    """Ours in float64, with as many units as the golden one."""
    net = create(**NETWORKS[name]).double()
    for stage, count in enumerate(UNITS.get(name, ()), start=1):
        setattr(net, f"layer{stage}", net.get_submodule(f"layer{stage}")[:count])
    return net


def renamed(name):
    """Our name of a tensor of the original."""
    if not name.startswith("pde:"):
        return name.replace("shortcut", "downsample").replace("linear", "fc")
    name = name.removeprefix("pde:")
    for number, block in enumerate(BLOCKS):
        name = name.replace(f"{block}.conv0.", f"connectors.{number - 1}.widening.0.")
        name = name.replace(f"{block}.bn0.", f"connectors.{number - 1}.widening.1.")
        last = number == len(BLOCKS) - 1
        name = name.replace(f"{block}.bn.", "head.norm." if last else f"connectors.{number}.norm.")
        name = name.replace(f"{block}.conv.", f"stages.{number}.controls.0.conv.")
    return re.sub("^linear", "head.linear", re.sub("^bn1", "stem.norm", re.sub("^conv1", "stem.conv", name)))


def of_original(net, tensors, name):
    """Tensors of the original by our names; raw kernels *x, *y are projected to the tie."""
    mark = "pde:" if name == "pde" else ""
    layers = {name: m for name, m in net.named_modules() if isinstance(m, TwistConv2d)}
    raw = re.compile(r"(.*conv\d?)([xy])\.weight")
    named, kernels = {}, {}
    for key, tensor in tensors.items():
        if match := raw.fullmatch(key):
            layer = renamed(f"{mark}{match[1]}.")[:-1]
            kernels.setdefault(layer, {})[match[2]] = tensor
        else:
            named[renamed(mark + key)] = tensor
    for layer, kernel in kernels.items():
        if layer in layers:
            named[f"{layer}.twist"] = coefficients(layers[layer], kernel)
    return named


def coefficients(layer, kernel):
    """The coefficients of raw kernels: those of Wx, and of Wy too where the tie leaves it free."""
    basis = layer.basis.double()
    tied = basis[:, 0].abs().sum((1, 2)) > 0
    along = {"x": basis[:, 0], "y": torch.where(tied[:, None, None], 0, basis[:, 1])}
    sums = sum(torch.einsum("oihw,nhw->oin", kernel[axis], b) for axis, b in along.items())
    return sums / sum(b.square().sum((1, 2)) for b in along.values())


class Copied(nn.Module):
    """A twist with the gradient of the published code, which sets Wy = (a copy of Wx) outside autograd.

    Only the term X Wx u moves the coefficients, and, as one coefficient stands for two entries of Wx, half as
    far.
    """

    def __init__(self, plain):
        super().__init__()
        self.weight, self.twist, self.basis = plain.weight, plain.twist, plain.basis
        self.options = plain.stride, plain.padding, plain.groups
        self.tied = bool(plain.basis[:, 0].abs().sum((1, 2)).all())

    def forward(self, u):
        def convolved(weight):
            stride, padding, groups = self.options
            return nn.functional.conv2d(u, weight, None, stride, padding, groups=groups)

        c = (self.twist + self.twist.detach()) / 2
        copy = c.detach() if self.tied else c
        y = convolved(self.weight)
        y_of, x_of = (torch.arange(side).to(y) / side - 0.5 for side in y.shape[2:])
        wx, wy = (
            torch.einsum("oin,nhw->oihw", k, self.basis[:, axis].to(k)) for axis, k in enumerate((c, copy))
        )
        return y + x_of * convolved(wx) + y_of[:, None] * convolved(wy)


def with_copies(net):
    for name, layer in list(net.named_modules()):
        if isinstance(layer, TwistConv2d):
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, Copied(layer))
    return net


def loss_of(net, golden):
    inputs = golden["images"][0].double() / 255 - 0.5
    return nn.functional.cross_entropy(net.train()(inputs), golden["labels"][0])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_the_published_one(name):
    golden, net = Golden(f"liuyao-{name}"), network(name)
    net.load_state_dict(of_original(net, golden.part("state"), name))
    with torch.no_grad():
        logits = net.eval()(golden["images"][0].double() / 255 - 0.5)
    assert_close({"logits": logits}, {"logits": golden["logits"]}, EVALUATED)
    loss_of(net, golden).backward()
    found = {n: p.grad for n, p in net.named_parameters()}
    expected = of_original(net, golden.part("gradient"), name)
    plain = [n for n in found if not n.endswith("twist")]
    assert_close({n: found[n] for n in plain}, {n: expected[n] for n in plain}, EVALUATED)


@pytest.mark.parametrize("name", NETWORKS)
def test_three_steps_are_the_published_ones_but_for_the_gradient_of_the_twist(name):
    """With a twist whose gradient is that of the published code; with ours, the twists learn otherwise."""
    golden = Golden(f"liuyao-{name}")
    images = golden["images"].double() / 255 - 0.5
    lr = float(golden.about["what"].rpartition(" ")[2])
    settings = {"schedule": {"name": "constant"}, "optimizer.lr": lr}

    def after(net):
        reference = network(name)
        state, end = (of_original(reference, golden.part(key), name) for key in ("state", "after"))
        net.load_state_dict(state)
        trainer = trainer_of(f"liuyao2021/{RECIPES[name]}", net, images, golden["labels"], **settings)
        return take(trainer), net.state_dict(), end

    losses, found, expected = after(with_copies(network(name)))
    assert losses == pytest.approx(golden["losses"].tolist(), rel=TRAINED)
    assert_close(found, expected, TRAINED)
    _, found, expected = after(network(name))
    twist = next(key for key in expected if key.endswith("twist"))
    assert not torch.allclose(found[twist], expected[twist], rtol=1e-4)
