"""Statistics over seeds: what a mean of few runs says, and what the difference of two says.

    interval of a mean        of ten runs or more the percentile bootstrap (Efron 1979), resampling the runs;
                              of fewer Student's, for the bootstrap of three holds the mean in 75 % of cases
    paired difference         over the seeds that both have: d_s = b_s - a_s; its interval is Student's,
                              mean(d) +- t_{n-1} sd(d) / sqrt(n), and p is of the hypothesis mean(d) = 0

With one run there is a value and no interval; nothing is made up for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000
RESAMPLED = 10  # runs from which on the bootstrap is used
ROUNDING = 1e-5  # points; differences of records that are rounded, and equal but for that


@dataclass(frozen=True)
class Mean:
    """Of several runs.

    Args:
        values: one a run.
        mean: of them.
        deviation: the standard deviation of a run (n - 1); None of one.
        low: where the interval of the mean begins; None of one.
        high: where it ends.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float | None
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        """How many runs."""
        return len(self.values)


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one run, with its interval; the resamples are the same each time."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Mean(tuple(values), mean, None, None, None)
    deviation = stdev(values)
    if n < RESAMPLED:
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n)
        return Mean(tuple(values), mean, deviation, mean - half, mean + half)
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(values), (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Mean(tuple(values), mean, deviation, float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """Of two groups of runs, paired by their seeds.

    Args:
        seeds: those that both have.
        mean: of the differences.
        low: where its interval begins; None of one seed, or where all differences are equal.
        high: where it ends.
        p: of Student's test.
    """

    seeds: tuple[int, ...]
    mean: float
    low: float | None
    high: float | None
    p: float | None


def difference_of(base: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Other - base over their common seeds; None where they have none."""
    seeds = tuple(sorted(base.keys() & other.keys()))
    if not seeds:
        return None
    found = [other[seed] - base[seed] for seed in seeds]
    mean, n = fmean(found), len(found)
    if n == 1:
        return Difference(seeds, mean, None, None, None)
    if max(found) - min(found) <= ROUNDING:
        return Difference(seeds, mean, None, None, None)
    error = stdev(found) / math.sqrt(n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Difference(seeds, mean, mean - half, mean + half, p)
