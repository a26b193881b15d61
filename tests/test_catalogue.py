"""The catalogue of models, weights and recipes holds what the networks themselves say.

After a change of a model, a recipe or the counting: `python results/catalogue.py` writes it anew.
"""

import json
from dataclasses import asdict

import pytest

from resode import catalogue, pretrained, recipes
from resode.analysis.costs import model_facts, pretrained_facts, recipe_cost
from resode.models import models
from resode.training import Experiment

QUICK = ("quickstart", "quickstart-parabolic", "quickstart-twist", "short/resnet20", "lu2018/lm-resnet20")
REWRITE = "out of date: python results/catalogue.py"


def plain(value):
    return json.loads(json.dumps(asdict(value)))


def test_every_model_recipe_and_weights_file_is_listed():
    assert list(catalogue.models()) == list(models.names()), REWRITE
    assert list(catalogue.pretrained()) == list(pretrained.names()), REWRITE
    assert all(catalogue.recipe(name) for name in recipes.files()), REWRITE


@pytest.mark.parametrize("name", [name for name in models.names() if "1202" not in name])
def test_the_facts_of_a_model_are_those_of_its_network(name):
    assert catalogue.models()[name] == model_facts(name), REWRITE


@pytest.mark.parametrize("name", pretrained.names())
def test_the_facts_of_weights_are_those_of_their_card(name):
    assert catalogue.pretrained()[name] == pretrained_facts(name), REWRITE


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in recipes.files()]
)
def test_the_cost_of_a_recipe_is_that_of_its_network(name):
    computed = recipe_cost(Experiment.from_recipe(name))
    assert computed is not None
    assert plain(catalogue.recipe(name)) == plain(computed), REWRITE


def test_only_known_names_have_a_cost():
    assert catalogue.recipe("he2016/resnet21") is None
