"""Costs of a recipe are those of the network that it trains, and nothing is allocated for them."""

import torch

from resode import cost
from resode.analysis.costs import explain_blocks, network_cost, recipe_cost
from resode.models import create
from resode.training import Experiment


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
