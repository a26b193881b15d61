"""Controls: theta(t), the parameters of a field as a function of time, on a grid of their own.

The value theta_j at a node tau_j is an ordinary module with its parameters. Between the nodes

    linear     theta(t) = (1 - w) theta_j + w theta_{j+1},   w = (t - tau_j) / (tau_{j+1} - tau_j)
    constant   theta(t) = theta_j                            tau_j <= t < tau_{j+1}
    shared     theta(t) = theta_0                            one node: an autonomous equation
    quadratic  theta(t) = sum_j B_j(t) theta_j               B-splines of degree 2
    cubic      theta(t) = sum_j B_j(t) theta_j               of degree 3

and outside the nodes theta is constant. The B-splines have clamped knots, each inner one the mean of d
neighbouring nodes (de Boor 2001, A Practical Guide to Splines, chapter XIII): theta(t) is theta_0 and theta_m
at the ends, sum_j B_j = 1, and every polynomial of degree d is such a theta(t). On d nodes or fewer the
degree is one less than their number. The control grid is independent of the state grid (Haber & Ruthotto
2017, arXiv:1705.03341).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from resode.errors import InputError, nearest
from resode.grids import TimeGrid
from resode.integrators.base import Evaluation

Theta = dict[str, Tensor]
Interpolation = Literal["linear", "constant", "shared", "quadratic", "cubic"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
DEGREES = {"quadratic": 2, "cubic": 3}  # of B-splines


def interpolation_weights(grid: TimeGrid, interpolation: str, t: float) -> tuple[tuple[int, float], ...]:
    """theta(t) as a combination of nodes: pairs (j, weight) with positive weights, the left node first.

    A time that differs from a node only by rounding counts as that node.
    """
    t = grid.snap(t)
    j = grid.interval_of(t)
    if interpolation == "shared" or t <= grid.start:
        return ((0, 1.0),)
    if t >= grid.end:
        return ((grid.steps, 1.0),)
    if interpolation in DEGREES:
        return _spline_weights(grid.nodes, DEGREES[interpolation], t)
    w = (t - grid.nodes[j]) / (grid.nodes[j + 1] - grid.nodes[j])
    if interpolation == "constant" or w == 0:
        return ((j, 1.0),)
    return ((j, 1.0 - w), (j + 1, w)) if w < 1 else ((j + 1, 1.0),)


def _spline_weights(nodes: Sequence[float], degree: int, t: float) -> tuple[tuple[int, float], ...]:
    """(j, B_j(t)) of the B-splines that are positive at t, strictly between the first and the last node.

    By the recursion of Cox and de Boor from degree 0 upwards: `values[i]` is B_{first + i} of degree d.
    """
    degree = min(degree, len(nodes) - 1)
    inner = (math.fsum(nodes[j : j + degree]) / degree for j in range(1, len(nodes) - degree))
    knots = (*[nodes[0]] * (degree + 1), *inner, *[nodes[-1]] * (degree + 1))
    k = bisect_right(knots, t) - 1  # t_k <= t < t_{k+1}
    values = [1.0]
    for d in range(1, degree + 1):
        raised = [0.0] * (d + 1)
        for i, value in enumerate(values):
            left, right = knots[k - d + 1 + i], knots[k + 1 + i]
            raised[i] += value * (right - t) / (right - left)
            raised[i + 1] += value * (t - left) / (right - left)
        values = raised
    return tuple((k - degree + i, value) for i, value in enumerate(values) if value > 0)


def default_controls(states: TimeGrid, evaluations: Iterable[Evaluation], interpolation: str) -> TimeGrid:
    """The state nodes that some evaluation touches: 3 for Euler on 3 steps, 5 for RK4 on 4.

    For a partitioned scheme, the nodes that every part touches, because a node holds all parts.
    """
    if interpolation == "shared":
        return TimeGrid(states.nodes[:1])
    touched: dict[str, set[int]] = {}
    for time, part in evaluations:
        weights = interpolation_weights(states, interpolation, time)
        touched.setdefault(part, set()).update(j for j, _ in weights)
    everywhere = set.intersection(*touched.values())
    return TimeGrid(tuple(t for j, t in enumerate(states.nodes) if j in everywhere))


def check_interpolation(name: Any) -> str:
    """Return the name of an interpolation; raise `InputError` with the nearest known name for others."""
    if name not in INTERPOLATIONS:
        hint = nearest(str(name), INTERPOLATIONS)
        raise InputError(f"unknown interpolation '{name}'{hint} ({', '.join(INTERPOLATIONS)})")
    return str(name)


class Controls(nn.ModuleList):
    """theta(t). Node j is the module `self[j]`, or a `ModuleDict` by part for a partitioned scheme.

    Args:
        make: makes a field with initial parameters.
        parts: the parts of the scheme's right-hand side; `("f",)` if there is only one.
        grid: the control nodes.
        interpolation: linear, constant, shared, quadratic or cubic.

    Raises:
        InputError: an unknown interpolation, or shared controls with several nodes.
    """

    def __init__(
        self, make: Callable[[], nn.Module], parts: Sequence[str], grid: TimeGrid, interpolation: str
    ) -> None:
        check_interpolation(interpolation)
        if interpolation == "shared" and grid.steps:
            raise InputError(f"shared controls have one node, {grid} has {grid.steps + 1}: omit controls")
        several = len(parts) > 1
        super().__init__(
            nn.ModuleDict({part: make() for part in parts}) if several else make() for _ in grid.nodes
        )
        self.grid, self.interpolation, self.parts = grid, interpolation, tuple(parts)

    def node(self, j: int, part: str = "f") -> nn.Module:
        """The module at node j."""
        module = self[j]
        return module[part] if len(self.parts) > 1 else module  # type: ignore[index]

    def weights(self, time: float) -> tuple[tuple[int, float], ...]:
        """theta(time) as a combination of nodes."""
        return interpolation_weights(self.grid, self.interpolation, time)

    def at(self, time: float, part: str = "f") -> Theta:
        """theta(time) by parameter name; at a node, the node's own parameters."""
        return self.combined(self.weights(time), part)

    def combined(self, weights: Sequence[tuple[int, float]], part: str = "f") -> Theta:
        """A combination of nodes with weights whose sum is 1, by parameter name."""
        (j, first), *others = weights
        theta: Theta = dict(self.node(j, part).named_parameters())
        if not others:
            return theta
        if len(others) == 1:
            ((after, w),) = others
            other = dict(self.node(after, part).named_parameters())
            return {name: torch.lerp(value, other[name], w) for name, value in theta.items()}
        theta = {name: first * value for name, value in theta.items()}
        for after, w in others:
            other = dict(self.node(after, part).named_parameters())
            theta = {name: torch.add(value, other[name], alpha=w) for name, value in theta.items()}
        return theta

    def unused(self, evaluations: Sequence[Evaluation]) -> tuple[int, ...]:
        """The nodes that some part never touches: parameters there get no gradient."""
        return tuple(sorted({j for part in self.parts for j in self.untouched(evaluations, part)}))

    def untouched(self, evaluations: Sequence[Evaluation], part: str) -> tuple[int, ...]:
        """The nodes that no evaluation of `part` touches."""
        touched = {j for e in evaluations if e.part == part for j, _ in self.weights(e.time)}
        return tuple(j for j in range(len(self)) if j not in touched)

    def with_zero(self, theta: Theta, nodes: Sequence[int], part: str) -> Theta:
        """`theta` plus 0 times the parameters of `nodes`: their gradient is then zero instead of missing."""
        for j in nodes:
            other = dict(self.node(j, part).named_parameters())
            theta = {name: torch.add(value, other[name], alpha=0) for name, value in theta.items()}
        return theta

    # ------------------------------------------------------------ regularity in time

    def differences(self) -> Iterator[tuple[float, Tensor]]:
        """(tau_{j+1} - tau_j, theta_{j+1} - theta_j), parameter by parameter."""
        for h, (before, after) in zip(self.grid.intervals, pairwise(self), strict=True):
            for p, q in zip(before.parameters(), after.parameters(), strict=True):
                yield h, q - p

    def roughness(self, total_variation: float, dirichlet: float, epsilon: float = 0.0) -> Tensor:
        """The roughness of theta(t) in time: total variation plus Dirichlet energy.

            a sum_j |theta_{j+1} - theta_j|_1 + b/2 sum_j ||theta_{j+1} - theta_j||^2 / (tau_{j+1} - tau_j)

        Haber & Ruthotto 2017 (arXiv:1705.03341), section 4. With epsilon > 0, |d| is rounded at 0: to
        h sqrt((d / h)^2 + epsilon), h = tau_{j+1} - tau_j.

        Args:
            total_variation: a.
            dirichlet: b.
            epsilon: in the total variation.
        """
        terms = [
            total_variation * (d.abs() if epsilon == 0 else h * ((d / h).square() + epsilon).sqrt()).sum()
            + dirichlet / (2 * h) * d.square().sum()
            for h, d in self.differences()
        ]
        if not terms:
            return next(self.parameters()).new_zeros(())
        return torch.stack(terms).sum()

    def extra_repr(self) -> str:
        return f"{self.interpolation}, nodes={self.grid}"


def controls_of(module: nn.Module) -> tuple[Controls, ...]:
    """All controls of a network."""
    return tuple(child for child in module.modules() if isinstance(child, Controls))


def roughness(
    module: nn.Module, total_variation: float, dirichlet: float, epsilon: float = 0.0
) -> Tensor | None:
    """The sum of `Controls.roughness` over a network; None if it has no controls with parameters."""
    every = (controls for controls in controls_of(module) if any(True for _ in controls.parameters()))
    terms = [controls.roughness(total_variation, dirichlet, epsilon) for controls in every]
    return torch.stack(terms).sum() if terms else None
