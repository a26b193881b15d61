"""A reversible gradient that has lost the states is warned of, once, where nobody else watches."""

import copy
import warnings

import pytest
import torch

from resode.blocks import DynamicBlock
from resode.gradients import Reversible, unwatched
from resode.gradients.watch import LIMIT
from resode.grids import TimeGrid
from resode.stages import Stage
from resode.training import Experiment, train
from resode.training.recipe.network import Drift
from tests.integrators.problems import fixed

WIDTH = 4
MOMENTUM = {"name": "momentum", "g": 0.9}


def block(
    gain=1.0, *, integrator=MOMENTUM, gradient="reversible", steps=64, dtype=torch.float32, norm="group"
):
    """A block whose weights are `gain` times the initial ones: its field grows with them."""
    torch.manual_seed(0)
    field = {"name": "preactivation", "norm": norm}
    made = DynamicBlock(Stage(WIDTH, field, integrator, TimeGrid.uniform(steps, 16.0), gradient=gradient))
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(gain)
    return made.to(dtype)


def gradients_of(made):
    """The gradient of a linear loss, in all parameters."""
    generator = torch.Generator().manual_seed(1)
    y, weight = torch.randn(2, 2, WIDTH, 6, 6, generator=generator, dtype=torch.float64)
    dtype = next(made.parameters()).dtype
    made.zero_grad()
    (made(y.to(dtype)) * weight.to(dtype)).sum().backward()
    return torch.cat([p.grad.double().flatten() for p in made.parameters()])


def warned(passes, run):
    """The warnings of each pass."""
    found = []
    for _ in range(passes):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
        found.append([str(each.message) for each in caught])
    return found


def lost():
    """A block that loses its states in float32."""
    return block(16.0)


def test_lost_states_are_warned_of_once_and_the_fix_is_named():
    made = lost()
    first, *later = warned(5, lambda: gradients_of(made))
    (line,) = first
    assert later == [[]] * 4
    assert "\n" not in line
    assert "64 steps of Momentum" in line
    for fix in ("checkpointed", "{name: reversible, anchor: 8}", "shorter steps", "float64"):
        assert fix in line


def test_a_graph_that_is_run_backwards_again_warns_once():
    made = lost()
    y = made(torch.randn(2, WIDTH, 6, 6)).sum()
    first, second = warned(2, lambda: y.backward(retain_graph=True))
    assert (len(first), second) == (1, [])


def test_what_is_warned_of_is_a_wrong_gradient_and_the_fixes_are_right():
    exact = gradients_of(block(16.0, gradient="stored", dtype=torch.float64))

    def error(**options):
        return ((gradients_of(block(16.0, **options)) - exact).norm() / exact.norm()).item()

    with pytest.warns(UserWarning, match="so the gradient is wrong"):
        assert error() > 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert error(dtype=torch.float64) < 1e-3
        assert error(gradient="checkpointed") < 1e-3
        assert error(gradient=Reversible(anchor=8)) < 1e-3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("integrator", fixed(where=lambda scheme: scheme.reversible))
@pytest.mark.parametrize("gradient", ["reversible", Reversible(anchor=3)])
def test_rounding_is_not_warned_of(integrator, gradient):
    made = block(integrator=integrator, gradient=gradient, steps=8)
    for _ in range(4):
        gradients_of(made)


def test_a_block_that_loses_its_states_later_is_found(monkeypatch):
    """Weights grow during a training: passes 1, 2, 4, ... are checked, and from 1024 on every 1024th."""
    made = block()
    checked = [n for n in range(1, 4097) if made._watch.due(torch.ones(1))]
    assert checked == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3072, 4096]
    made._watch.passes = 0
    assert warned(2, lambda: gradients_of(made)) == [[], []]
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1000)
    (third, fourth) = warned(2, lambda: gradients_of(made))
    assert (len(third), len(fourth)) == (0, 1)


def test_a_check_changes_no_gradient_and_no_statistics():
    made = block(norm="batch")
    plain = copy.deepcopy(made)
    found = gradients_of(made)
    with unwatched():
        assert torch.equal(gradients_of(plain), found)
    for name, buffer in made.named_buffers():
        assert torch.equal(buffer, plain.get_buffer(name))


@pytest.mark.filterwarnings("error")
def test_a_pass_without_a_gradient_or_that_overflows_says_nothing():
    made = lost()
    with torch.no_grad():
        made(torch.randn(2, WIDTH, 6, 6))
    made = block(norm=None)
    with torch.no_grad():
        for p in made.parameters():
            p.fill_(torch.inf)
    gradients_of(made)  # infinite itself, which no user overlooks


def test_the_trainer_watches_itself(tmp_path):
    """One message of the trainer's, no warning beside it; and both have the same limit."""
    assert Drift().limit == LIMIT
    network = {"name": "preactivation", "norm": "group"}
    stage = {"width": 8, "field": network, "integrator": MOMENTUM, "states": 12, "gradient": "reversible"}
    settings = {
        "name": "mine", "model": {"name": "dynamic", "stages": [stage], "in_channels": 1},
        "data": {"source": "digits"}, "epochs": 1, "batch_size": 512, "precision": "fp32", "compile": False,
        "optimizer": {"name": "sgd", "lr": 0.01}, "schedule": {"name": "constant"}, "drift": {"limit": 1e-9},
    }  # fmt: skip
    lines = []
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr("resode.gradients.watch.LIMIT", 1e-12)
        train(Experiment.from_values(settings, "mine"), out=tmp_path / "run", progress=lines.append)
    assert (tmp_path / "run" / "summary.json").exists()
