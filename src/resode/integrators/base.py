"""Integrators: y(t_0) -> y(t_n) for y' = f(t, y), one step after another on a time grid.

An integrator is a frozen value. It declares where it evaluates the right-hand side on a grid, so that
controls, statistics and cost are known before the first step, and makes one step from the *carry*: all that a
step needs of the ones before (for a one-step method the state alone). Learned numbers of a scheme are
declared by `coefficients` and owned by the block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from resode.errors import InputError
from resode.grids import TimeGrid

Carry = tuple[Tensor, ...]
RightHandSide = Callable[[int, Tensor], Tensor]  # (number of the evaluation on the whole grid, y) -> f
Numbers = Mapping[str, Tensor]  # the learned numbers, each with the steps along its first axis


class Evaluation(NamedTuple):
    """One evaluation of a right-hand side: when, and of which part of the field."""

    time: float
    part: str = "f"


class Integrator(ABC):
    """A scheme with its choices; every concrete one is a frozen dataclass, and exact in its docstring.

    Class attributes:
        parts: the right-hand sides that the scheme calls; more than one split the state along its channels.
        second_order: whether it solves y'' = f(t, y) with y'(t_0) = 0, instead of y' = f(t, y).
        reversible: whether `inverse` recovers the carry before a step.
    """

    parts: ClassVar[tuple[str, ...]] = ("f",)
    second_order: ClassVar[bool] = False
    reversible: ClassVar[bool] = False

    @property
    @abstractmethod
    def order(self) -> int | None:
        """The order of convergence; None where the scheme has none to state."""

    @property
    def name(self) -> str:
        """How a block calls it."""
        return type(self).__name__

    @property
    def equation(self) -> str:
        """One step, in a line; a class attribute will do."""
        return ""

    def check(self, grid: TimeGrid) -> None:
        """Refuse a grid that the scheme cannot use (`InputError`, with the mend)."""
        if grid.steps < 1:
            raise InputError(f"{self.name}: a state grid needs at least two nodes, {grid} has one")


class FixedStep(Integrator):
    """An integrator that makes one step for each interval of the grid."""

    @abstractmethod
    def evaluations(self, grid: TimeGrid) -> tuple[Evaluation, ...]:
        """All evaluations on a grid, in the order in which they are made and numbered."""

    def coefficients(self, grid: TimeGrid, width: int) -> dict[str, Tensor]:
        """Initial values of the learned numbers, by name, each of shape (steps, ...)."""
        return {}

    def start(self, y: Tensor) -> Carry:
        """The carry before the first step."""
        return (y,)

    @abstractmethod
    def step(self, k: int, grid: TimeGrid, f: RightHandSide, carry: Carry, numbers: Numbers) -> Carry:
        """The carry after step k (from 0)."""

    def state(self, carry: Carry) -> Tensor:
        """The state y of a carry."""
        return carry[0]

    def inverse(self, k: int, grid: TimeGrid, f: RightHandSide, carry: Carry, numbers: Numbers) -> Carry:
        """The carry before step k, from that after it."""
        raise InputError(f"{self.name} cannot be run backwards")

    def amplification(self, grid: TimeGrid) -> float:
        """By how much running backwards over the whole grid amplifies a rounding error."""
        return 1.0

    def growth(self, z: complex) -> float:
        """The largest modulus by which a step multiplies a solution of y' = lambda y, z = h lambda.

        For y'' = lambda y, z = h^2 lambda. At most 1: linearly stable. A scheme that leaves this out
        (`states_growth` is False) is never warned of.
        """
        raise NotImplementedError(f"{self.name} does not state its growth")

    @property
    def states_growth(self) -> bool:
        """Whether the scheme defines `growth`."""
        return type(self).growth is not FixedStep.growth


def carries(
    integrator: FixedStep, grid: TimeGrid, f: RightHandSide, y: Tensor, numbers: Numbers
) -> Iterator[Carry]:
    """The carries at t_0, ..., t_n."""
    carry = integrator.start(y)
    yield carry
    for k in range(grid.steps):
        carry = integrator.step(k, grid, f, carry, numbers)
        yield carry


def solve(
    integrator: FixedStep,
    grid: TimeGrid,
    f: Callable[..., Tensor],
    y: Tensor,
    numbers: Numbers | None = None,
) -> list[Tensor]:
    """The states at the nodes of `grid`, of y' = f(t, y) from y.

    Args:
        integrator: the scheme.
        grid: the nodes of the states.
        f: `f(t, y)`, or `f(t, y, part)` for a scheme with several parts.
        y: the initial state; a partitioned scheme splits it along axis 1.
        numbers: learned numbers; left out, their initial values.
    """
    integrator.check(grid)
    evaluations = integrator.evaluations(grid)
    if numbers is None:
        width = y.shape[1] if y.ndim > 1 else 1
        numbers = {name: value.to(y) for name, value in integrator.coefficients(grid, width).items()}

    def rhs(number: int, state: Tensor) -> Tensor:
        time, part = evaluations[number]
        return f(time, state, part) if len(integrator.parts) > 1 else f(time, state)

    return [integrator.state(carry) for carry in carries(integrator, grid, rhs, y, numbers)]


def halves(y: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves (Y, Z) of a split state, along the channels."""
    if y.shape[1] % 2:
        raise InputError(f"a state of {y.shape[1]} channels cannot be split in halves: take an even width")
    first, second = torch.chunk(y, 2, 1)
    return first, second
