"""S is 1 for independent units, small for smooth ones, and blind to the direction of time."""

import math

import numpy as np
import pytest
import torch

from resode import Stage
from resode.analysis.depth.smoothness import p_value, ratio, smoothness
from resode.blocks import DynamicBlock


def distances(points):
    points = np.asarray(points, float)
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_values_on_a_line_have_the_smallest_p(n):
    found = distances([[k, 2 * k] for k in range(n)])
    assert ratio(found) == pytest.approx(3 / (n + 1))
    assert p_value(found) == pytest.approx(2 / math.factorial(n))


def test_random_orders_replace_all_orders_of_many_units():
    found = distances([[k] for k in range(12)])
    assert p_value(found) == pytest.approx(1 / 10_001)


def test_the_reversed_order_is_as_smooth():
    points = np.random.default_rng(0).normal(size=(6, 3))
    assert ratio(distances(points)) == pytest.approx(ratio(distances(points[::-1])))
    assert p_value(distances(points)) == p_value(distances(points[::-1]))


def test_units_that_are_all_equal_have_no_ratio():
    assert ratio(np.zeros((4, 4))) is None
    assert p_value(np.zeros((4, 4))) is None


def block(n):
    return DynamicBlock(Stage(8, "preactivation", "euler", states=n))


def test_independent_units_have_the_ratio_1():
    found = smoothness(block(8).controls)
    assert found.units == 8
    assert found.weights == pytest.approx(1, abs=0.05)
    assert found.operators == pytest.approx(1, abs=0.05)
    assert found.p > 0.01


def test_units_on_a_smooth_path_are_found_by_weights_and_by_operators():
    made = block(6)
    with torch.no_grad():
        for j, node in enumerate(made.controls):
            for p, first, last in zip(
                node.parameters(), made.controls[0].parameters(), made.controls[5].parameters(), strict=True
            ):
                p.copy_(torch.lerp(first, last, j / 5))
    found = smoothness(made.controls)
    assert found.weights == pytest.approx(3 / 7, rel=1e-3)
    assert found.operators == pytest.approx(3 / 7, rel=1e-3)
    assert found.p == pytest.approx(2 / 720)
    assert found.operators_p == pytest.approx(2 / 720)


def test_one_unit_is_not_judged():
    made = DynamicBlock(Stage(8, "parabolic", "euler", states=4, interpolation="shared"))
    found = smoothness(made.controls)
    assert (found.units, found.weights, found.p) == (1, None, None)
