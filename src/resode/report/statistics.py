"""Statistics over seeds: the mean of a few runs and the difference of two arms, with 95 % intervals.

    mean                  Student's interval, mean +- t_{n-1} sd / sqrt(n); from 30 runs on the percentile
                          bootstrap over runs (Efron 1979), which for 3 covers the mean in 75 % of cases
    paired difference     d_s = b_s - a_s over the common seeds; Student's interval, and p of the t-test
                          of mean(d) = 0

One run has a value and no interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000
BOOTSTRAP_FROM = 30  # runs
ROUNDING = 1e-5  # points; records are rounded, so differences closer than this count as equal


@dataclass(frozen=True)
class Mean:
    """The mean of several runs.

    Args:
        values: one for each run.
        mean: their mean.
        deviation: standard deviation of a run (n - 1); None for one run.
        low: lower end of the interval of the mean; None for one run.
        high: upper end.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.values)


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one run, with its interval (deterministic: the bootstrap has a fixed seed)."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Mean(tuple(values), mean)
    deviation = stdev(values)
    error = deviation / math.sqrt(n)
    if n >= BOOTSTRAP_FROM:
        low, high = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=LEVEL,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    elif error:
        low, high = stats.t.interval(LEVEL, n - 1, mean, error)
    else:
        low = high = mean
    return Mean(tuple(values), mean, deviation, float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """The difference of two arms, paired by seed.

    Args:
        seeds: the common seeds.
        mean: mean difference.
        low: lower end of its interval; None for one seed, or where all differences are equal.
        high: upper end.
        p: of Student's t-test.
    """

    seeds: tuple[int, ...]
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def difference_of(base: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """`other` - `base` over their common seeds; None where they have none."""
    seeds = tuple(sorted(base.keys() & other.keys()))
    if not seeds:
        return None
    differences = [other[seed] - base[seed] for seed in seeds]
    mean = fmean(differences)
    if max(differences) - min(differences) <= ROUNDING:  # one seed, or all differences equal
        return Difference(seeds, mean)
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(LEVEL)
    return Difference(seeds, mean, float(low), float(high), float(test.pvalue))
