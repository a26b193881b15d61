"""Whole networks: the verdict of known ones, the count of passes, and inputs that cannot be measured."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import resode
from resode import DynamicNet, Stage, TimeGrid
from resode.analysis.depth import Depth, depth
from resode.analysis.depth.stage import is_smooth
from resode.blocks import DynamicBlock
from resode.errors import InputError, IntegrityError

SMOOTH = {"name": "parabolic", "norm": None, "activation": "tanh"}


def pictures(n, side=4, seed=0):
    random = np.random.default_rng(seed)
    return random.random((n, side, side, 3), np.float32), np.arange(n) % 10


def test_shared_smooth_controls_and_short_steps_solve_their_equation():
    stage = Stage(4, SMOOTH, "euler", TimeGrid.uniform(2, 0.1), interpolation="shared")
    found = depth(DynamicNet([stage]), pictures(600))
    assert found.verdict == "solves its equation", found
    assert found.stages[0].observed_order == pytest.approx(1, abs=0.1)
    assert found.stages[0].growth <= found.stages[0].growth_bound == 1


def test_units_drawn_independently_are_not_smooth():
    found = depth(DynamicNet([Stage(8, SMOOTH, "euler", TimeGrid.uniform(6, 0.6))]), pictures(10))
    assert found.verdict == "not smooth in depth"
    assert found.reason.startswith("S = 1.0") or found.reason.startswith("S = 0.9")


def test_a_network_that_classifies_by_its_step_is_bound_to_its_scheme():
    """Labels are the network's own answers, and f is so large that other steps give others."""
    net = DynamicNet([Stage(4, "preactivation", "euler", TimeGrid.uniform(2, 20.0))], classes=2).eval()
    for parameter in net.stages.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    images, _ = pictures(200)
    with torch.no_grad():
        margin = (net(torch.from_numpy(images).permute(0, 3, 1, 2)) @ torch.tensor([-1.0, 1.0])).numpy()
        net.head.linear.bias[0] += float(np.median(margin))
    found = depth(net, (images, (margin > np.median(margin)).astype(int)))
    assert found.error == 0
    assert found.verdict == "bound to its scheme", found
    assert found.refinement[1].increase_kept.low >= found.thresholds.increase


@pytest.mark.parametrize("scheme", ["euler", "rk4", "symplectic_euler", "stormer_verlet", "adams_bashforth2"])
def test_at_most_sixty_plain_passes_are_made(scheme):
    pair = len(resode.integrators.integrators.of(scheme).parts) == 2
    field = {"name": "hamiltonian" if pair else "preactivation", "norm": "batch"}
    net = DynamicNet([Stage(4, field, scheme, states=2), Stage(8, field, scheme, states=3)])
    plain = sum(len(block.evaluations) for block in net.blocks())
    calls = []
    for block in net.blocks():
        for node in block.controls:
            for part in node.values() if pair else [node]:
                part.register_forward_hook(lambda module, args, value: calls.append(len(args[0])))
    images, labels = pictures(64, side=8)
    training = pictures(77, side=8, seed=1)  # 77 at a time: estimate statistics
    found = depth(net, (*training, images, labels))
    made = sum(n for n in calls if n != 77) / (64 * plain)
    assert found.statistics == "kept and estimated anew"
    assert found.statistics_images == 77
    assert made <= 60
    assert found.passes == pytest.approx(made, abs=0.1)  # the check of the output, the inverse


def test_the_network_is_unchanged():
    net = DynamicNet([Stage(4, "preactivation", "heun", states=2)])
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    depth(net, (*pictures(40, seed=1), *pictures(10)))
    assert [m.training for m in net.modules()] == modes
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_first_images_are_taken():
    net = DynamicNet([Stage(4, SMOOTH, "euler", states=2)])
    images, labels = pictures(12)
    found = depth(net, (images, labels), images=10)
    assert (found.images, found.of, found.stage_images) == (10, 12, 5)
    same = depth(net, (images[:10], labels[:10]))
    assert found.refinement == same.refinement
    assert [s.distance for s in found.stages] == [s.distance for s in same.stages]


def test_without_training_images_statistics_are_kept_and_a_note_says_so():
    net = DynamicNet([Stage(4, "preactivation", "euler", states=2)])
    found = depth(net, pictures(10))
    assert found.statistics == "kept"
    assert [r.error_new for r in found.refinement] == [None] * 4
    assert "give (images, labels, test_images, test_labels)" in found.notes[-1]


def test_a_scheme_without_an_order_is_undecided():
    net = DynamicNet([Stage(4, SMOOTH, "learned_two_step", states=2)])
    found = depth(net, pictures(10))
    assert found.swaps == ()
    assert found.verdict == "undecided"
    assert "a scheme that has an order" in found.would_decide


def test_the_record_is_json_and_is_read_again():
    net = DynamicNet([Stage(4, SMOOTH, "rk4", states=1), Stage(4, SMOOTH, "euler", states=2)])
    found = depth(net, pictures(10))
    text = json.dumps(found.record(), allow_nan=False)
    again = Depth.from_record(text, "depth.json")
    assert again == found
    record = json.loads(text)
    assert {"verdict", "refinement", "stages"} <= set(record)
    assert [row["factor"] for row in record["refinement"]] == [1, 2, 4, 8]
    assert {"error_kept", "error_new"} <= set(record["refinement"][0])
    assert {"observed_order", "distance"} <= set(record["stages"][0])
    with pytest.raises(IntegrityError, match=r"depth.json: is no record .* write it anew"):
        Depth.from_record('{"verdict": 1}', "depth.json")


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 10)),
            "the network: a Sequential has no convolutions",
        ),
        (
            lambda: DynamicNet([Stage(4, SMOOTH, "adaptive", states=2)]),
            "stage 1 is integrated by Adaptive dopri5.*--depth needs fixed steps",
        ),
    ],
)
def test_what_has_no_fixed_steps_is_refused_in_one_line(net, message):
    with pytest.raises(InputError, match=message) as caught:
        depth(net(), pictures(4))
    assert len(caught.value.messages) == 1
    assert "\n" not in caught.value.messages[0]


def test_a_resnet_is_measured_as_the_network_that_it_is_lifted_to():
    net = resode.create("digits_resnet14", in_channels=3)
    data = pictures(20, side=8)
    direct, lifted = depth(net, data), depth(resode.lift(net), data)
    assert direct.model == "HeResNet"
    assert (direct.error, direct.verdict, direct.refinement) == (
        lifted.error,
        lifted.verdict,
        lifted.refinement,
    )
    assert [stage.scheme for stage in direct.stages] == ["Projected Euler"] * 3


def test_weights_that_are_not_finite_are_refused():
    net = DynamicNet([Stage(4, SMOOTH, "euler", states=2)])
    with torch.no_grad():
        next(net.stages.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="weights that are not finite"):
        depth(net, pictures(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "images cannot be 0"),
        ({"images": "8"}, "images cannot be '8'"),
        ({"batch_size": -1}, "batch_size cannot be -1"),
        ({"data": (np.zeros((4, 4, 4, 1), np.float32), [0, 1, 2, 3])}, "channels"),
    ],
)
def test_other_inputs_are_refused(change, message):
    arguments = {"data": pictures(4), **change}
    with pytest.raises(InputError, match=message):
        depth(DynamicNet([Stage(4, SMOOTH, "euler", states=2)]), **arguments)


@pytest.mark.parametrize(
    ("field", "scheme", "controls", "expected"),
    [
        (SMOOTH, "euler", "constant", True),
        (SMOOTH, "adams_bashforth2", "linear", True),
        (SMOOTH, "adams_bashforth2", "constant", False),  # a slope from beyond a jump of theta(t)
        ("parabolic", "rk4", "linear", False),  # ReLU
        (lambda width: nn.Conv2d(width, width, 1), "rk4", "linear", True),
        (lambda width: nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU()), "rk4", "linear", False),
    ],
)
def test_the_order_of_the_scheme_is_asked_for_only_where_f_is_known_to_be_smooth(
    field, scheme, controls, expected
):
    assert is_smooth(DynamicBlock(Stage(4, field, scheme, 2, interpolation=controls))) == expected
