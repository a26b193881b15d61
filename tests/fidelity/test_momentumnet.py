"""momentumnet's MResNet, of our units and blocks: network and training, against its own numbers.

`tests/golden/make/momentumnet.py` ran it in float64. Its stages are an ordinary residual unit and steps of
the momentum scheme for the branch N2 K2 relu(N1 K1 y).
"""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resode import Stage, TimeGrid
from resode.blocks import DynamicBlock
from resode.fields import Double
from resode.integrators import Momentum
from resode.models.layouts import UnitSpec
from resode.models.units import BasicUnit, Convolution, shortcut_b
from tests.fidelity.training import EVALUATED, TRAINED, Golden, assert_close, rates, take, trainer_of

WIDTHS, STEPS = (2, 4, 6, 8), (2, 2, 1, 1)


class MomentumResNet(nn.Module):
    """The network of the original, (N, 3, H, W) -> (N, 10)."""

    def __init__(self, gradient):
        super().__init__()
        self.conv1, self.bn1 = Convolution(3, WIDTHS[0]), nn.BatchNorm2d(WIDTHS[0])
        inputs, strides = (WIDTHS[0], *WIDTHS[:-1]), (1, 2, 2, 2)
        specs = [UnitSpec(i, w, w, (s, 1)) for i, w, s in zip(inputs, WIDTHS, strides, strict=True)]
        self.units = nn.ModuleList(BasicUnit(spec, shortcut_b) for spec in specs)
        field, scheme = Double(final_activation=False), Momentum(0.9)
        self.blocks = nn.ModuleList(
            DynamicBlock(Stage(width, field, scheme, TimeGrid.uniform(steps), gradient=gradient))
            for width, steps in zip(WIDTHS, STEPS, strict=True)
        )
        self.fc = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        for unit, block in zip(self.units, self.blocks, strict=True):
            y = block(unit(y))
        return self.fc(y.mean((2, 3)))


def ours(name):
    """Our name of a tensor of the original."""
    step = re.fullmatch(r"layer(\d)\.1\.network\.(\d)\.(\w+?)(\d)\.(.*)", name)
    if step:
        layer, number, kind, place, tensor = step.groups()
        of_evaluation = "running" in tensor or "tracked" in tensor
        where = f"blocks.{int(layer) - 1}.{'statistics' if of_evaluation else 'controls'}.{number}"
        return f"{where}.{kind.replace('bn', 'norm')}{place}.{tensor}"
    return re.sub(r"layer(\d)\.0", lambda found: f"units.{int(found[1]) - 1}", name)


@pytest.fixture
def golden():
    return Golden("momentumnet-mresnet")


def part(golden, name):
    return {ours(key): tensor for key, tensor in golden.part(name).items()}


def network(golden, gradient):
    net = MomentumResNet(gradient).double()
    net.load_state_dict(part(golden, "state"))
    return net


@pytest.mark.parametrize("gradient", ["stored", "reversible"])
def test_logits_and_gradients(golden, gradient):
    net = network(golden, gradient)
    with torch.no_grad():
        assert_close({"": net.eval()(golden["inputs"][0])}, {"": golden["logits"]}, EVALUATED)
    F.cross_entropy(net.train()(golden["inputs"][0]), golden["labels"][0]).backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert_close(gradients, part(golden, "gradient"), EVALUATED)


def test_three_steps_of_the_recipe(golden):
    """Scaling, loss, rate, weight decay of all parameters, running statistics, reversible gradients."""
    trainer = trainer_of(
        "sander2021/momentum-resnet20", network(golden, "reversible"), golden["images"], golden["labels"]
    )
    for step, inputs in enumerate(golden["inputs"]):
        assert_close({"": trainer.setup.training.batch(0, step).inputs}, {"": inputs}, EVALUATED)
        assert trainer.learning_rate(step) == pytest.approx(golden["rates"][step].item())
    losses = take(trainer)
    assert losses == pytest.approx(golden["losses"].tolist(), rel=TRAINED)
    assert_close(trainer.module.state_dict(), part(golden, "after"), TRAINED)


def test_the_rates_in_each_epoch():
    """`lr_list` of run_CIFAR_10.py."""
    np.testing.assert_allclose(rates("sander2021/momentum-resnet20"), np.repeat([0.01, 0.001], [180, 40]))
