"""Norms over time are those of the forward pass; stability numbers are those of the warnings."""

import math

import pytest
import torch

import resode
from resode import DynamicNet, Stage, TimeGrid
from resode.analysis import dynamics
from resode.errors import InputError
from resode.stability import stability_numbers

PLAIN = {"name": "parabolic", "norm": None}


def rms(x):
    return float(x.double().square().mean().sqrt())


def test_states_are_those_of_the_trajectory_and_times_continue():
    net = DynamicNet(
        [Stage(4, PLAIN, "rk4", TimeGrid([1, 2, 4])), Stage(8, "preactivation", "euler", 2)]
    ).eval()
    x = torch.rand(3, 3, 8, 8)
    first, second = dynamics(net, x)
    with torch.no_grad():
        _, states = net.trajectory(x)
    assert [t for t, _ in first.state] == [0, 1, 3]
    assert [t for t, _ in second.state] == [3, 4, 5]
    found = [norm for stage in (first, second) for _, norm in stage.state]
    assert found == pytest.approx([rms(y) for y in states], rel=1e-6)


def test_f_is_taken_at_every_evaluation():
    net = DynamicNet([Stage(4, PLAIN, "euler", TimeGrid([0, 0.5, 2]))]).double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    (stage,) = dynamics(net, x)
    _, (y0, y1, y2) = net.trajectory(x)
    assert [t for t, _ in stage.slope] == [0, 0.5]
    slopes = [rms((y1 - y0).detach() / 0.5), rms((y2 - y1).detach() / 1.5)]
    assert [norm for _, norm in stage.slope] == pytest.approx(slopes)


@pytest.mark.parametrize("scheme", ["rk4", "stormer_verlet", "leapfrog", "adams_bashforth2"])
def test_every_scheme_has_norms_of_state_f_and_theta(scheme):
    pair = scheme == "stormer_verlet"
    net = DynamicNet([Stage(4, "hamiltonian" if pair else PLAIN, scheme, states=2)])
    (stage,) = dynamics(net, torch.rand(2, 3, 8, 8))
    assert len(stage.state) == 3
    assert len(stage.slope) >= 2
    assert len(stage.theta) == len(next(net.blocks()).controls)
    assert {"field", "scheme", "states", "controls"} <= set(stage.facts)


def test_without_images_there_are_no_norms_of_states():
    (stage,) = dynamics(DynamicNet([Stage(4, PLAIN, "euler", 2)]), size=(8, 8))
    assert stage.state == stage.slope == ()
    assert stage.theta
    assert stage.stability
    assert "4x8x8" in stage.facts["states"]


def test_mode_and_statistics_are_unchanged():
    net = DynamicNet([Stage(4, "preactivation", "euler", 2)]).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    dynamics(net, torch.rand(2, 3, 8, 8))
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match="have 1 channels, the network takes 3"):
        dynamics(DynamicNet([Stage(4, PLAIN, "euler", 2)]), torch.rand(2, 1, 8, 8))


def test_the_stability_number_is_1_at_the_bound_of_the_warning():
    def numbers(states, **more):
        block = resode.DynamicBlock(Stage(4, PLAIN, "euler", states, interpolation="shared", **more))
        torch.nn.init.constant_(block.controls[0].conv.weight, 0.05)
        return block, stability_numbers(block.stage, block.controls, 8, 8)

    _, (first, second) = numbers([0, 1, 3])
    assert second == pytest.approx(2 * first)
    block, (scaled,) = numbers([0, 0.999 / first])
    assert scaled == pytest.approx(0.999)
    assert block.stability(8, 8) is None
    block, _ = numbers([0, 1.001 / first])
    assert block.stability(8, 8) is not None


def test_where_no_bound_is_known_there_is_no_number():
    block = resode.DynamicBlock(Stage(4, "preactivation", "euler", 2))
    assert stability_numbers(block.stage, block.controls, 8, 8) == (None, None)
    unstable = resode.DynamicBlock(Stage(4, "antisymmetric", "euler", 1))
    assert stability_numbers(unstable.stage, unstable.controls, 8, 8) == (math.inf,)
