"""The rules of the verdict, in their order, and the intervals that they judge."""

from dataclasses import replace

import pytest
import torch

from resode.analysis.depth.paired import Increase, increase
from resode.analysis.depth.record import Refinement, StageDepth, Swap, Thresholds
from resode.analysis.depth.smoothness import Smoothness
from resode.analysis.depth.verdict import allowed_orders, judge

LIMITS = Thresholds()
NONE = Increase(0.0, -0.1, 0.1, 1.0)
STAGE = StageDepth(
    stage=1,
    field="Parabolic",
    equation="",
    scheme="Euler",
    steps=8,
    interpolation="constant",
    declared_order=1,
    smooth=True,
    order_low=0.8,
    order_high=1.2,
    observed_order=1.0,
    observed_low=0.9,
    observed_high=1.1,
    exact=False,
    distance=0.1,
    distances={1: 0.1, 2: 0.05, 4: 0.02, 8: 0.01},
    smoothness=Smoothness(8, 0.4, 0.001, 0.4, 0.001),
    reversal=0.1,
    inverse=False,
    growth=1.0,
    growth_largest=1.0,
    growth_bound=None,
    theta=(),
)


def change(low, high):
    return Increase((low + high) / 2, low, high, 0.5)


def verdict(stage=STAGE, refinement=NONE, swap=NONE, images=10_000):
    finer = [Refinement(10.0, 10.0, NONE, NONE, factor=1), Refinement(10.0, 10.0, refinement, NONE, factor=2)]
    return judge([stage], finer, [Swap(10.0, 10.0, swap, NONE, scheme="Heun")], images, LIMITS)


def with_smoothness(units, value):
    return replace(STAGE, smoothness=Smoothness(units, value, 0.5, None, None))


def test_an_equation_that_is_solved():
    found = verdict()
    assert found.verdict == "solves its equation"
    assert "observed orders 1.00" in found.reason
    assert found.would_decide == ""


@pytest.mark.parametrize(
    ("units", "value", "expected"),
    [
        (5, 0.9, "not smooth in depth"),
        (5, 0.899, "solves its equation"),
        (4, 1.0, "solves its equation"),  # four units cannot decide it
    ],
)
def test_smoothness_is_judged_from_five_units_on(units, value, expected):
    assert verdict(with_smoothness(units, value)).verdict == expected


def test_smoothness_comes_first():
    assert verdict(with_smoothness(6, 1.0), refinement=change(3, 5)).verdict == "not smooth in depth"


@pytest.mark.parametrize("which", ["refinement", "swap"])
@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 2.0, "bound to its scheme"),
        (0.49, 2.0, "undecided"),
        (-0.1, 0.5, "undecided"),
        (-0.1, 0.49, "solves its equation"),
        (-5.0, -4.0, "solves its equation"),  # it gets better
    ],
)
def test_the_interval_of_the_increase_decides(which, low, high, expected):
    found = verdict(**{which: change(low, high)})
    assert found.verdict == expected
    assert ("test images" in found.would_decide) == (expected == "undecided")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"observed_order": 0.79}, "undecided"),
        ({"observed_order": 1.21}, "undecided"),
        ({"observed_order": 1.21, "order_high": None}, "solves its equation"),
        ({"observed_order": None}, "undecided"),
        ({"observed_order": None, "exact": True}, "solves its equation"),
        ({"order_low": None, "order_high": None, "declared_order": None}, "undecided"),
    ],
)
def test_the_observed_order_decides(changes, expected):
    found = verdict(replace(STAGE, **changes))
    assert found.verdict == expected
    assert bool(found.would_decide) == (expected == "undecided")


def test_orders_that_are_allowed():
    assert allowed_orders(4, True, LIMITS) == pytest.approx((3.8, 4.2))
    assert allowed_orders(4, False, LIMITS) == (0.8, None)
    assert allowed_orders(1, True, LIMITS) == pytest.approx((0.8, 1.2))
    assert allowed_orders(None, False, LIMITS) == (None, None)


def test_reversal_and_growth_are_never_judged():
    assert verdict(replace(STAGE, reversal=None, growth=1e9)).verdict == "solves its equation"


def test_the_rules_are_stated_with_their_numbers():
    text = "\n".join(LIMITS.lines())
    for number in ("5 units", "0.9", "0.5 points", "0.2"):
        assert number in text


# ---------------------------------------------------------------- paired increase


def wrong(*places, n=1000):
    found = torch.zeros(n, dtype=torch.bool)
    found[list(places)] = True
    return found


def test_an_increase_counts_the_images_that_change():
    found = increase(wrong(0, 1, 2), wrong(2, 3, 4, 5, 6, 7, 8))
    assert found.points == pytest.approx(0.4)  # 6 newly wrong, 2 newly right
    assert found.low < found.points < found.high
    assert found.p == pytest.approx(0.2890625)  # 2 P(X <= 2), X ~ B(8, 1/2)


def test_the_same_images_give_no_increase_but_an_interval():
    found = increase(wrong(1), wrong(1))
    assert (found.points, found.p) == (0.0, 1.0)
    assert found.low == pytest.approx(-found.high)
    assert 0.25 < found.high < 0.3  # 1.96 sqrt(2) / 1002


def test_the_interval_covers_the_increase_of_a_population():
    random = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        draw = torch.rand(800, generator=random)
        found = increase(draw < 0.11, (draw < 0.1) | (draw > 0.98))  # 2 % newly wrong, 1 % newly right
        covered += found.low <= 1.0 <= found.high
    assert covered >= 0.92 * 400  # 95 % up to three standard deviations
