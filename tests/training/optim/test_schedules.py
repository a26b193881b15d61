import math

import pytest

from resode.training.optim.schedules import factor, learning_rate
from resode.training.recipe.schedule import Constant, Cosine, LinearExponential, MultiStep, OneCycle, Warmup


def test_multistep_is_the_papers_schedule():
    """He et al. 2016: lr 0.1, divided by 10 at 32k and 48k of 64k iterations."""
    rates = [
        learning_rate(MultiStep(), 0.1, k, 64_000, 352) for k in (0, 31_999, 32_000, 47_999, 48_000, 63_999)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-12)


def test_cosine_ends_meet():
    assert factor(Cosine(), 0) == 1
    assert factor(Cosine(final=0.1), 0.5) == pytest.approx(0.55)
    assert factor(Cosine(), 1) == pytest.approx(0, abs=1e-15)


def test_one_cycle_peaks_where_it_says():
    schedule = OneCycle(peak=0.25, start=0.1, final=0.01)
    assert [factor(schedule, x) for x in (0, 0.25, 1)] == pytest.approx([0.1, 1, 0.01])
    assert factor(schedule, 0.125) == pytest.approx(0.55)


def test_linear_exponential_is_x_times_exp():
    schedule = LinearExponential(peak=0.2)
    assert factor(schedule, 0.2) == 1
    assert factor(schedule, 0.5) == pytest.approx(2.5 * math.exp(-1.5))
    assert max(factor(schedule, k / 1000) for k in range(1000)) == 1


@pytest.mark.parametrize(("shape", "middle"), [("constant", 0.1), ("linear", 0.55)])
def test_warm_up_multiplies_the_schedule(shape, middle):
    schedule = Constant(warmup=Warmup(epochs=2, factor=0.1, shape=shape))
    rates = [learning_rate(schedule, 1.0, k, 1000, 50) for k in (0, 50, 100)]
    assert rates == pytest.approx([0.1, middle, 1.0])
