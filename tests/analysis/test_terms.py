"""The table has the rows that a network has, counted."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import resode
from resode.analysis import terms
from resode.analysis.operations import GLOBAL, MAXIMUM, MEAN, SUM, count_operations
from resode.operators.twist import TwistConv2d

SHAPE = (3, 8, 8)


def counts(model, shape=SHAPE):
    return {term.network: term.count for term in terms(model, shape)}


def test_a_plain_resnet():
    found = counts(resode.create("he_resnet8"))
    assert found == {
        "residual units, one after another": 3,
        "skip connection u + F(u)": 3,
        "shortcut that pads channels": 2,
        "3x3 kernel W * u": 7,
        "BatchNorm": 7,
        "ReLU": 7,
        "padding: zeros": 7,
        "stride 2": 2,
        "global average": 1,
        "linear layer": 1,
    }


def test_bottlenecks_have_convolutions_of_size_1():
    found = {term.network: term for term in terms(resode.create("cifar_resnet50"), SHAPE)}
    assert found["1x1 convolution"].count == 36
    assert found["1x1 convolution"].here.startswith("layer1.0.conv1, layer1.0.conv3, ")
    assert found["skip connection u + F(u)"].count == 16
    assert found["3x3 kernel W * u"].count == 17


def test_a_dynamic_block_is_its_equation_and_has_no_skips():
    stages = [resode.Stage(4, "parabolic", "rk4", 2), resode.Stage(8, "parabolic", "leapfrog", 2)]
    found = {term.network: term for term in terms(resode.DynamicNet(stages, classes=10), SHAPE)}
    assert "skip connection u + F(u)" not in found
    blocks = [term for name, term in found.items() if name.startswith("dynamic block")]
    assert [block.pde for block in blocks] == ["du/dt = f(theta(t), u)", "d2u/dt2 = f(theta(t), u)"]
    assert blocks[0].here.startswith("f = -(K^T relu(N(K y + b1)) + b2)")
    assert found["transposed convolution K^T of the same kernel"].count == 3 + 2
    assert found["TvNorm"].count == 5
    assert found["ReLU"].count == 8 + 2 + 2  # evaluations, stem and connector


@pytest.mark.parametrize(
    ("scheme", "equation"),
    [
        ("imex", "du/dt = f(theta(t), u) - B^T B u, the last term implicit"),
        ("coupling", "two halves of the channels, each driven by f(theta(t), u) of the other"),
        ("learned_two_step", "a recurrence driven by f(theta(t), u)"),
    ],
)
def test_what_a_scheme_discretises(scheme, equation):
    net = resode.DynamicNet([resode.Stage(4, "preactivation", scheme, 2)], classes=10)
    (block,) = [term for term in terms(net, SHAPE) if term.network.startswith("dynamic block")]
    assert block.pde == equation


def test_a_twist_tells_its_motions():
    model = resode.twist(resode.create("he_resnet8"), [1], tie="saddle")
    row = next(term for term in terms(model, SHAPE) if term.network.startswith("twist"))
    assert (row.count, row.here) == (2, "all 0")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, TwistConv2d):
                module.twist.normal_()
    row = next(term for term in terms(model, SHAPE) if term.network.startswith("twist"))
    assert row.here == "0 % dilation, 0 % rotation, 100 % strain"
    assert counts(model)["skip connection u + F(u)"] == 3  # the sums of a twist are its own


class Foreign(nn.Module):
    """A network of someone else: everything once."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, stride=2, padding=3)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose2d(4, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.act = nn.GELU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        y = self.pool(self.act(self.norm(self.stem(x))))
        y = y + self.conv(y)
        y += 1
        y = F.avg_pool2d(torch.tanh(self.up(y)), 2)
        return F.adaptive_avg_pool2d(y, 1).flatten(1)


def test_any_module_is_read():
    model = Foreign().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = {term.network: term for term in terms(model, (3, 16, 16))}
    expected = {
        "residual units, one after another", "skip connection u + F(u)", "3x3 kernel W * u",
        "7x7 convolution", "3x3 transposed convolution", "bias of a convolution", "GroupNorm", "tanh", "GELU",
        "padding: zeros", "padding: circular", "stride 2", "average pooling", "max pooling",
        "global average",
    }  # fmt: skip
    assert found.keys() == expected
    assert found["7x7 convolution"].here == "stem"
    assert found["bias of a convolution"].count == 3
    assert {term.count for name, term in found.items() if name != "bias of a convolution"} == {1}
    seen = count_operations(model, (3, 16, 16))
    assert (seen[SUM], seen[MEAN], seen[MAXIMUM], seen[GLOBAL]) == (1, 1, 1, 1)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
