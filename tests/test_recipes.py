"""Recipes of the package by name."""

import pytest

import resode
from resode import recipes
from resode.errors import InputError


def test_names_are_found_by_part_and_by_pattern():
    assert recipes.list_recipes() == list(recipes.files())
    assert recipes.list_recipes("quickstart*")[-1] == "quickstart"
    assert recipes.list_recipes("110") == ["akamaster/resnet110", "gomez2017/revnet110", "he2016/resnet110"]
    assert recipes.list_recipes("vgg") == []
    assert resode.list_recipes is recipes.list_recipes


def test_names_are_in_natural_order():
    he = recipes.list_recipes("he2016/*")
    assert he.index("he2016/resnet56") < he.index("he2016/resnet110") < he.index("he2016/resnet1202")


def test_a_recipe_has_a_summary():
    assert recipes.summary("he2016/resnet20") == "ResNet-20 by the paper's recipe"
    with pytest.raises(InputError, match="did you mean 'he2016/resnet20'"):
        recipes.summary("he2016/resnt20")


def test_a_pattern_that_is_no_text_is_refused():
    with pytest.raises(InputError, match="pattern 3: a text"):
        recipes.list_recipes(3)
