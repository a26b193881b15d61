"""Parameters are clamped to the bound of their kind, and no others are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import resode
from resode.controls import controls_of
from resode.errors import InputError
from resode.training import Experiment
from resode.training.recipe.network import Box
from resode.training.setup.bounds import clamp
from resode.training.setup.preparation import prepare

BIG = 10.0


def network(**options):
    """A narrow network of the toolbox, all parameters at +-10."""
    net = resode.create("dynamicblocks", widths=(3, 4), states=[0, 1], **options)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(BIG * torch.randn_like(p).sign())
    return net


def clamped(net, **bounds):
    """The names of the parameters that bounds change, with their largest number."""
    clamp(net, Box(**bounds))
    sizes = {name: p.abs().max().item() for name, p in net.named_parameters()}
    return {name: size for name, size in sizes.items() if size != BIG}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("convolutions", {"stem.conv.weight", "stem.conv.bias", "connectors.0.conv.weight",
                          "connectors.0.conv.bias", "0.conv.weight", "0.conv.bias", "1.conv.weight",
                          "1.conv.bias"}),
        ("norms", {"stem.norm.weight", "connectors.0.norm.weight", "0.norm.weight", "1.norm.weight"}),
        ("linear", {"head.linear.weight"}),
        ("controls", {f"{j}.{name}" for j in (0, 1) for name in (
            "conv.weight", "conv.bias", "bias", "norm.weight", "norm.bias")}),
    ],
)  # fmt: skip
def test_a_bound_holds_for_its_kind_alone(kind, expected):
    """The bias of K^T and those of norms belong to no kind but the controls."""
    found = clamped(network(norm="batch"), **{kind: 0.5})
    assert {name.removeprefix("stages.0.controls.") for name in found} == expected
    assert set(found.values()) == {0.5}


def test_kinds_have_bounds_of_their_own_and_the_smaller_one_counts():
    found = clamped(network(), controls=0.25, convolutions=0.5, linear=1.5)
    assert found["stages.0.controls.0.conv.weight"] == 0.25
    assert found["stem.conv.weight"] == 0.5
    assert found["head.linear.weight"] == 1.5


def test_twisted_and_ordinary_convolutions_are_bounded_but_not_their_twist():
    net = nn.Sequential(resode.operators.twist.TwistConv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(BIG)
    assert clamped(net, convolutions=0.5).keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 1))
def test_clamping_gives_the_nearest_point_within_the_bound(bound):
    net = resode.create("dynamicblocks", widths=(3, 4), states=[0, 1])
    (controls,) = controls_of(net)
    before = {name: p.detach().clone() for name, p in controls.named_parameters()}
    clamp(net, Box(controls=bound))
    for name, p in controls.named_parameters():
        assert np.array_equal(p.detach().numpy(), np.clip(before[name].numpy(), -bound, bound))
        assert p.requires_grad


def test_a_number_bounds_the_controls():
    assert Experiment.from_recipe("quickstart-parabolic", {"box": 0.5}).box == Box(controls=0.5)
    assert Experiment.from_recipe("quickstart-parabolic", ["box.linear=2"]).box == Box(linear=2)


def test_a_kind_that_the_network_lacks_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    experiment = Experiment.from_recipe("quickstart", {"box": {"convolutions": 1, "norms": 1, "linear": 1}})
    with pytest.raises(InputError) as error:
        prepare(experiment, net)
    assert error.value.messages == (
        "box.convolutions: the network has none; remove it", "box.norms: the network has none; remove it",
    )  # fmt: skip
