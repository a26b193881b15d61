"""Costs of a recipe are those of the network that it trains, and nothing is allocated for them."""

import dataclasses

import pytest
import torch

from resode import cost
from resode.analysis.bench import bench
from resode.analysis.costs import explain_blocks, network_cost, recipe_cost
from resode.cli import main
from resode.models import create
from resode.training import Experiment
from resode.training.setup.preparation import prepare


def test_a_recipe_costs_what_its_network_costs():
    experiment = Experiment.from_recipe("he2016/resnet20")
    found, network = recipe_cost(experiment), create("he_resnet20")
    assert found.shape == (3, 32, 32)
    assert found.network.parameters == cost.parameters(network)
    assert found.network.multiply_adds == cost.multiply_adds(network, (3, 32, 32))
    assert found.fixed_bytes[0] == 4 * found.network.parameters
    assert found.steps[0].name == "as the recipe says"
    assert explain_blocks(experiment) == ""


def test_data_decides_channels_and_classes():
    experiment = Experiment.from_recipe("quickstart", {"model": {"name": "he_resnet8"}})
    found = recipe_cost(experiment)
    assert found.shape == (1, 8, 8)
    assert found.network.parameters == cost.parameters(create("he_resnet8", in_channels=1))


def test_a_network_without_a_known_image_has_parameters_alone():
    found = network_cost(lambda: create("he_resnet8"), None)
    assert found.multiply_adds is None
    assert found.parameters > 0


def test_blocks_are_explained_with_the_weights_of_the_seed():
    experiment = Experiment.from_recipe("quickstart-parabolic")
    before = torch.random.get_rng_state()
    text = explain_blocks(experiment)
    assert "RK4, order 4" in text
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- adaptive solvers


def test_a_cost_that_depends_on_the_images_is_a_lower_bound_and_names_the_tolerances():
    found = recipe_cost(Experiment.from_recipe("chen2018/neural-ode", {"model.rtol": 0.02})).network
    assert found.solvers == "Adaptive dopri5 (rtol 0.02, atol 0.01)"
    assert found.work.startswith(">= ")
    assert "one evaluation counted of Adaptive dopri5 (rtol 0.02, atol 0.01)" in found.counted
    fixed = recipe_cost(Experiment.from_recipe("dynamicblocks/rk4")).network
    assert (fixed.solvers, fixed.counted) == ("", "")
    assert fixed.work == "228.2 M"


def test_memory_and_operations_of_an_adaptive_solver_are_no_fixed_numbers():
    pytest.importorskip("torchdiffeq")
    solver = {"width": 4, "field": {"name": "parabolic", "norm": "group"}, "integrator": "adaptive"}
    model = {"name": "dynamic", "stages": [{**solver, "states": [0, 1]}], "in_channels": 1}
    settings = {"model": model, "precision": "fp32", "batch_size": 64}
    experiment = Experiment.from_recipe("quickstart", settings)
    setup = prepare(experiment)
    choice = dataclasses.replace(setup.memory, budget=10**9).choose(setup.module)
    line = dataclasses.replace(setup.memory, budget=10**9).describe(setup.module, choice)
    assert line.endswith(
        "one evaluation counted for Adaptive dopri5 (rtol 0.001, atol 0.0001), which may take more"
    )
    assert bench(setup, seconds=0.2, rounds=1).operations is None
    rows = dict(setup.module.stages[0].explain(8, 8))
    assert rows["evaluations"] == "as many as rtol 0.001, atol 0.0001 need for the images"
    assert rows["multiply-adds"].endswith(", each evaluation")
    assert rows["memory"].endswith("; one evaluation counted")


def test_the_command_shows_both(capsys):
    for words in (["show", "neural_ode"], ["show", "chen2018/neural-ode"], ["list", "models", "neural_ode"]):
        with pytest.raises(SystemExit):
            main(words)
        assert ">= 50.4 M" in capsys.readouterr().out
