"""The statistics of the paired experiment against formulas written by hand."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import resode
from resode import cost

pytest.importorskip("scipy")
FILE = Path(__file__).parents[2] / "experiments" / "twist.py"


@pytest.fixture(scope="module")
def experiment():
    specification = importlib.util.spec_from_file_location("twist_experiment", FILE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def right(*numbers: int, of: int = 100) -> np.ndarray:
    """A mask of `of` images with the given indices set."""
    found = np.zeros(of, dtype=bool)
    found[list(numbers)] = True
    return found


def test_with_one_seed_the_interval_is_mcnemars(experiment):
    plain, other = right(*range(50)), right(*range(10, 55))  # 10 are lost, 5 are won
    found = experiment.effect([plain], [other])
    half = 1.95996 * math.sqrt((15 - 25 / 100) / 100**2) * 100
    assert found["points"] == pytest.approx(5.0)  # more errors
    assert found["high"] == pytest.approx(5 + half, abs=1e-3)
    assert found["low"] == pytest.approx(5 - half, abs=1e-3)
    assert found["over"] == "100 images, one seed"


def test_with_several_seeds_it_is_students(experiment):
    plain = [right(*range(50)), right(*range(60)), right(*range(55))]
    other = [right(*range(53)), right(*range(61)), right(*range(57))]  # -3, -1, -2 points of error
    found = experiment.effect(plain, other)
    half = 4.30265 * 1.0 / math.sqrt(3)
    assert (found["points"], found["over"]) == (pytest.approx(-2.0), "3 seeds")
    assert found["high"] == pytest.approx(-2 + half, abs=1e-3)
    assert found["low"] == pytest.approx(-2 - half, abs=1e-3)


def test_the_arms_match_in_parameters_and_multiply_adds():
    with torch.device("meta"):
        plain = resode.create("he_resnet20")
        nets = {tie: resode.twist(plain, tie=tie) for tie in ("conformal", "free")}
        nets |= {
            "wider": resode.create("he_resnet20", widths=[20, 38, 77]),
            "widest": resode.create("he_resnet20", widths=[28, 55, 111]),
        }
    parameters = {name: cost.parameters(net) for name, net in nets.items()}
    work = {name: cost.multiply_adds(net, (3, 32, 32)) for name, net in nets.items()}
    assert parameters["wider"] == pytest.approx(parameters["conformal"], rel=0.005)
    assert parameters["widest"] == pytest.approx(parameters["free"], rel=0.005)
    assert work["widest"] == pytest.approx(work["free"], rel=0.005)
    assert work["conformal"] == work["free"]
