"""Smoothness in depth: whether neighbouring units are closer to each other than units anywhere.

    S = mean_k |theta_{k+1} - theta_k| / mean_{j != k} |theta_j - theta_k|

Independent units have S = 1 up to their scatter; n values of a smooth theta(t) about 3 / (n + 1). p is the
share of the orders of the same units that have so small an S. The reversed order has the same S, so that p is
at least 2 / n!: three units cannot decide anything, from five on p can fall below 0.05.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resode.analysis.kernels import kernels_of
from resode.controls import Controls

EXACT = 8  # units up to which all orders are tried
ORDERS = 10_000  # random orders for more units
SEED = 0

Distances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Smoothness:
    """S of the units of a stage, and its p-value over the orders of the units.

    Args:
        units: how many control nodes there are.
        weights: S of all parameters of a unit as one vector; None for one unit or equal ones.
        p: its p-value.
        operators: S of the 3x3 kernels as differential operators, in their nine coefficients.
        operators_p: its p-value.
    """

    units: int
    weights: float | None
    p: float | None
    operators: float | None
    operators_p: float | None


def smoothness(controls: Controls) -> Smoothness:
    """Test theta(t) at its control nodes."""
    nodes = list(controls)
    weights = [
        torch.cat([p.detach().double().flatten() for p in node.parameters()] or [_none()]) for node in nodes
    ]
    operators = [
        torch.cat([kernel.coefficients.flatten() for kernel in kernels_of(node)] or [_none()])
        for node in nodes
    ]
    of_weights, of_operators = map(_tested, (weights, operators))
    return Smoothness(len(nodes), *of_weights, *of_operators)


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


def _tested(units: Sequence[Tensor]) -> tuple[float | None, float | None]:
    """S and its p-value."""
    if len(units) < 2 or not units[0].numel():
        return None, None
    points = torch.stack([unit.cpu() for unit in units])
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    found: Distances = distances.numpy()
    return ratio(found), p_value(found)


def ratio(distances: Distances) -> float | None:
    """S from the distances (n, n) of all units; None where all are equal."""
    n = len(distances)
    mean = distances.sum() / (n * (n - 1))
    return float(np.diagonal(distances, 1).mean() / mean) if mean else None


def p_value(distances: Distances) -> float | None:
    """The share of orders of the units with an S at most that of the order given."""
    n = len(distances)
    if not distances.any():
        return None
    own = np.diagonal(distances, 1).sum() * (1 + 1e-12)  # sums in another order differ by rounding
    if n <= EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        random = np.random.default_rng(SEED)
        orders = np.array([random.permutation(n) for _ in range(ORDERS)])
    sums = distances[orders[:, :-1], orders[:, 1:]].sum(1)
    smaller = int((sums <= own).sum())
    return smaller / math.factorial(n) if n <= EXACT else (1 + smaller) / (1 + ORDERS)
