"""Paired increase of an error: the same images, classified by a network and by a changed one.

    d = (b - c) / N,   b images are newly wrong, c newly right

The 95 % interval is that of Bonett and Price (2012) for paired proportions, which adds one to b and to c and
two to N before Wald's formula, so that b = c = 0 does not give an interval of length 0. p is McNemar's exact
test of b = c.
"""

import math
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

LEVEL = 0.95
Z = float(stats.norm.ppf((1 + LEVEL) / 2))


@dataclass(frozen=True)
class Increase:
    """An increase of the error in points of percent.

    Args:
        points: of the images at hand.
        low: lower end of its 95 % interval.
        high: upper end.
        p: McNemar's exact test.
    """

    points: float
    low: float
    high: float
    p: float


def increase(before: Tensor, after: Tensor) -> Increase:
    """From which images are wrong before and after, (N,) bool each."""
    newly, right = int((after & ~before).sum()), int((before & ~after).sum())
    n = len(before)
    p12, p21 = (newly + 1) / (n + 2), (right + 1) / (n + 2)
    half = Z * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    middle = p12 - p21
    p = float(stats.binomtest(newly, newly + right).pvalue) if newly + right else 1.0
    return Increase(100 * (newly - right) / n, 100 * (middle - half), 100 * (middle + half), p)
