"""Initial weights of the DynamicBlocks toolbox."""

import math

import pytest
import torch
from torch import nn

import resode
from resode.errors import InputError
from resode.models.initial import clamped_xavier

# Of a standard normal number clamped to [-2, 2], by quadrature: 0.960.
STD = math.sqrt(
    sum(min(abs(x), 2) ** 2 * math.exp(-x * x / 2) for x in (k / 1000 for k in range(-9000, 9001)))
    / 1000
    / math.sqrt(2 * math.pi)
)


@pytest.mark.parametrize(
    ("layer", "fans"),
    [
        (nn.Conv2d(32, 64, 3), 9 * (32 + 64)),
        (nn.Conv2d(64, 128, 1), 64 + 128),
        (nn.Linear(100, 300), 400),
        (resode.fields.Convolution(32, 32, bias=True), 9 * 64),
    ],
    ids=["3x3", "1x1", "linear", "of a field"],
)
def test_weights_are_normal_and_clamped_at_two_deviations(layer, fans):
    torch.manual_seed(0)
    clamped_xavier(layer)
    s = math.sqrt(2 / fans)
    assert layer.weight.abs().max().item() == pytest.approx(2 * s)
    n = layer.weight.numel()  # five standard errors of mean and deviation
    assert abs(layer.weight.mean().item()) < 5 * s / math.sqrt(n)
    assert layer.weight.std().item() == pytest.approx(STD * s, rel=5 / math.sqrt(2 * n))
    assert not layer.bias.any()


def test_a_network_draws_them_and_is_the_usual_one_without():
    torch.manual_seed(3)
    plain = resode.create("dynamicblocks", widths=(3, 4), states=[0, 1])
    torch.manual_seed(3)
    again = resode.create("dynamicblocks", widths=(3, 4), states=[0, 1], initial="default")
    other = resode.create("dynamicblocks", widths=(3, 4), states=[0, 1], initial="clamped_xavier")
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), again.parameters(), strict=True))
    for name, p in other.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
    assert (other.stem.norm.weight == 1).all()
    assert other.stages[0].controls[0].conv.weight.abs().max() <= 2 * math.sqrt(2 / (9 * 6))


def test_an_unknown_choice_is_refused():
    with pytest.raises(InputError, match=r"unknown initial 'xavier'.*default, clamped_xavier"):
        resode.create("dynamicblocks", initial="xavier")
