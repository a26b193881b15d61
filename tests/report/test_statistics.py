"""Means and paired differences: cases by hand, and what holds for any numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resode.report.statistics import difference_of, mean_of

ERRORS = st.lists(st.floats(0, 100), min_size=3, max_size=12)


def test_a_case_by_hand():
    found = mean_of([8.0, 8.2, 8.4, 8.6])
    assert found.n == 4
    assert found.mean == pytest.approx(8.3)
    assert found.deviation == pytest.approx(math.sqrt(0.2 / 3))
    half = 3.18245 * math.sqrt(0.2 / 3) / 2  # t of 3 degrees of freedom
    assert (found.low, found.high) == (
        pytest.approx(8.3 - half, abs=1e-4),
        pytest.approx(8.3 + half, abs=1e-4),
    )


def test_of_one_run_nothing_is_made_up():
    found = mean_of([8.0])
    assert (found.deviation, found.low, found.high) == (None, None, None)


@given(ERRORS, st.floats(-10, 10))
def test_intervals_move_with_the_values(values, shift):
    first, second = mean_of(values), mean_of([v + shift for v in values])
    for a, b in ((first.low, second.low), (first.high, second.high), (first.mean, second.mean)):
        assert b == pytest.approx(a + shift, abs=1e-9)


@pytest.mark.parametrize("runs", [2, 3, 5, 10, 29, 30])
def test_intervals_cover_the_mean(runs):
    """400 trials with normal values: 5 % miss on average, 20, and no count is 4 deviations (4.4) away."""
    rng = np.random.default_rng(runs)
    missed = 0
    for _ in range(400):
        found = mean_of(list(rng.normal(3, 1, runs)))
        missed += not found.low <= 3 <= found.high
    assert 6 <= missed <= 38


def test_of_many_runs_the_runs_are_resampled():
    values = [float(v) for v in [1] * 29 + [31]]
    found = mean_of(values)
    assert found.mean == 2.0
    assert (found.low, found.high) == (1.0, 4.0)  # none to three of the outlier in 95 % of the resamples


def test_differences_are_paired_by_seed():
    base, other = {0: 10.0, 1: 12.0, 2: 14.0, 9: 1.0}, {2: 13.0, 1: 11.5, 0: 9.5, 5: 50.0}
    found = difference_of(base, other)
    assert found.seeds == (0, 1, 2)
    assert found.mean == pytest.approx(-2 / 3)
    differences = [-0.5, -0.5, -1.0]
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    low, high = stats.t.interval(0.95, 2, np.mean(differences), stats.sem(differences))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_seeds_in_common_decide_what_is_known():
    assert difference_of({0: 1.0}, {1: 2.0}) is None
    one = difference_of({0: 1.0, 3: 5.0}, {0: 2.5})
    assert (one.mean, one.low, one.high, one.p) == (1.5, None, None, None)
    equal = difference_of({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0})
    assert (equal.mean, equal.low, equal.high, equal.p) == (1, None, None, None)


def test_differences_that_are_equal_but_for_rounding_have_no_interval():
    found = difference_of({0: 2.777778, 1: 3.055556, 2: 2.5}, {0: 3.055556, 1: 3.333334, 2: 2.777778})
    assert found.mean == pytest.approx(0.277778)
    assert (found.low, found.high, found.p) == (None, None, None)


@given(st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=3))
def test_a_difference_to_itself_is_nothing(errors):
    found = difference_of(errors, errors)
    assert (found.mean, found.low, found.high, found.p) == (0, None, None, None)


def test_p_is_uniform_where_nothing_differs():
    """The share of p below 0.05 among 400 differences of equal distributions."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        a, b = rng.normal(size=(2, 5))
        hits += difference_of(dict(enumerate(a)), dict(enumerate(b))).p < 0.05
    spread = 4 * math.sqrt(400 * 0.05 * 0.95)
    assert abs(hits - 20) < spread
