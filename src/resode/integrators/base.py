"""Integrators: y(t_0) -> y(t_n) for y' = f(t, y), one step after another on a time grid.

An integrator is a frozen value. It declares at which times a step evaluates the right-hand side, so that
controls, statistics and cost are known before the first step. A step reads as in a textbook: it has the time
t and the length h, calls f(i, y) for its i-th evaluation, and maps a *carry* to the next one. The carry is
all that a step needs from the steps before; for a one-step method it is the state alone. A scheme declares
learned coefficients with `coefficients`; the block owns them as parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from resode.errors import InputError
from resode.grids import Step, TimeGrid
from resode.registry import Registry, instance

Carry = tuple[Tensor, ...]
RightHandSide = Callable[[int, Tensor], Tensor]  # f(i, y), the i-th evaluation of a step
Coefficients = Mapping[str, Tensor]  # learned coefficients by name


NORM = "N"  # the part of an evaluation that applies the norm N of the field alone


class Evaluation(NamedTuple):
    """One evaluation: its time, and of what: "f", a part of a partitioned scheme, or `NORM`."""

    time: float
    part: str = "f"


class Integrator(ABC):
    """A time integration scheme; every concrete one is a frozen dataclass with its equation and source.

    Class attributes:
        parts: the right-hand sides that the scheme calls; with more than one, the state is split along its
            channels.
        second_order: whether it solves y'' = f(t, y) with y'(t_0) = 0, instead of y' = f(t, y).
        reversible: whether `inverse` recovers the carry before a step.
        projects: whether each step ends with the projection on y >= 0, so that states are never negative.
    """

    parts: ClassVar[tuple[str, ...]] = ("f",)
    second_order: ClassVar[bool] = False
    reversible: ClassVar[bool] = False
    projects: ClassVar[bool] = False

    @property
    def moving(self) -> bool:
        """Whether the first step uses the difference y_0 - y_{-1} that the state comes with."""
        return False

    @property
    @abstractmethod
    def order(self) -> int | None:
        """The order of convergence; None if the scheme has none."""

    @property
    def name(self) -> str:
        """The name in messages and in `print(block)`."""
        return type(self).__name__

    @property
    def equation(self) -> str:
        """One step, in a line of text; a class attribute is enough."""
        return ""

    def check(self, grid: TimeGrid) -> None:
        """Raise `InputError` for a grid that the scheme cannot use, with the fix."""
        if grid.steps < 1:
            raise InputError(f"{self.name}: a state grid needs at least two nodes, {grid} has one")


integrators: Registry[Integrator] = Registry("integrator", "integrators")


class FixedStep(Integrator):
    """An integrator that makes one step for each interval of the grid.

    Class attributes:
        first_same_as_last: whether evaluation 0 of a step is the last evaluation of the step before, kept in
            the carry; only the first step makes it.
    """

    first_same_as_last: ClassVar[bool] = False

    @abstractmethod
    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """The evaluations of a step: `f(i, y)` is the right-hand side at the i-th of them."""

    def coefficients(self, grid: TimeGrid, width: int) -> dict[str, Tensor]:
        """Initial values of the learned coefficients by name, each of shape (steps, ...).

        One of shape (m, ...) with m < steps belongs to the last m steps; the steps before have none.
        """
        return {}

    def start(self, y: Tensor, difference: Tensor | None = None) -> Carry:
        """The carry before the first step.

        Args:
            y: the state.
            difference: y_0 - y_{-1}, for a `moving` scheme (default: 0).
        """
        return (y,)

    @abstractmethod
    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        """The carry after a step.

        Args:
            s: time and length of the step.
            f: `f(i, y)`, the right-hand side at the i-th of `evaluations(s)`.
            carry: the carry before the step.
            coefficients: the learned coefficients of this step.
        """

    def state(self, carry: Carry) -> Tensor:
        """The state y of a carry."""
        return carry[0]

    def inverse(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        """The carry before a step, from the carry after it; arguments as for `step`."""
        raise InputError(f"{self.name} cannot be run backwards")

    def amplification(self, grid: TimeGrid) -> float:
        """The factor by which running backwards over the whole grid amplifies a rounding error."""
        return 1.0

    def growth(self, z: complex) -> float:
        """The largest modulus by which a step multiplies a solution of y' = lambda y, z = h lambda.

        For y'' = lambda y, z = h^2 lambda. The scheme is linearly stable where it is at most 1. A scheme that
        does not define it (`states_growth` is False) gets no stability warnings.
        """
        raise NotImplementedError(f"{self.name} does not state its growth")

    @property
    def states_growth(self) -> bool:
        """Whether the scheme defines `growth`."""
        return type(self).growth is not FixedStep.growth

    def evaluations_on(self, grid: TimeGrid) -> tuple[Evaluation, ...]:
        """All evaluations on a grid, in the order in which they are made and numbered."""
        made: list[Evaluation] = []
        for k in range(grid.steps):
            made += self.evaluations(grid.step(k))[1 if k and self.first_same_as_last else 0 :]
        return tuple(made)

    def offsets(self, grid: TimeGrid) -> tuple[int, ...]:
        """The position of each step's evaluation 0 in `evaluations_on(grid)`."""
        lengths = [len(self.evaluations(grid.step(k))) - self.first_same_as_last for k in range(grid.steps)]
        return tuple(accumulate(lengths[:-1], initial=0))


def of_step(coefficients: Coefficients, k: int, steps: int) -> dict[str, Tensor]:
    """The learned coefficients of step k out of so many, from those of all steps that have any."""
    rows = {name: k - steps + len(value) for name, value in coefficients.items()}
    return {name: coefficients[name][row] for name, row in rows.items() if row >= 0}


def right_hand_side(integrator: FixedStep, s: Step, f: Callable[..., Tensor]) -> RightHandSide:
    """f(i, y) of a step, from `f(t, y)` or, for a partitioned scheme, `f(t, y, part)`."""
    evaluations = integrator.evaluations(s)

    def rhs(i: int, y: Tensor) -> Tensor:
        time, part = evaluations[i]
        return f(time, y, part) if len(integrator.parts) > 1 or part == NORM else f(time, y)

    return rhs


def carries(
    integrator: FixedStep, grid: TimeGrid, f: Callable[..., Tensor], y: Tensor, coefficients: Coefficients
) -> Iterator[Carry]:
    """The carries at t_0, ..., t_n; arguments as for `solve`."""
    carry = integrator.start(y)
    yield carry
    for k in range(grid.steps):
        s = grid.step(k)
        own = of_step(coefficients, k, grid.steps)
        carry = integrator.step(s, right_hand_side(integrator, s, f), carry, own)
        yield carry


def solve(
    integrator: FixedStep,
    grid: TimeGrid,
    f: Callable[..., Tensor],
    y: Tensor,
    coefficients: Coefficients | None = None,
) -> list[Tensor]:
    """The states at the nodes of `grid`, for y' = f(t, y) from y.

    Args:
        integrator: the scheme.
        grid: the nodes of the states.
        f: `f(t, y)`, or `f(t, y, part)` for a partitioned scheme; `f(t, y, "N")` is the norm that a scheme
            may ask for.
        y: the initial state; a partitioned scheme splits it along axis 1.
        coefficients: learned coefficients, as the scheme's `coefficients` (default: their initial values).

    Example:
        >>> from resode.integrators import RK4
        >>> solve(RK4(), TimeGrid.uniform(10, end=1.0), lambda t, y: -y, torch.ones(1))[-1]
        tensor([0.3679])
    """
    instance(integrator, FixedStep, "integrator", "a scheme with fixed steps")
    instance(grid, TimeGrid, "grid", "a TimeGrid")
    integrator.check(grid)
    if coefficients is None:
        width = y.shape[1] if y.ndim > 1 else 1
        coefficients = {name: value.to(y) for name, value in integrator.coefficients(grid, width).items()}
    return [integrator.state(carry) for carry in carries(integrator, grid, f, y, coefficients)]


def halves(y: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves (Y, Z) of a state, along its channels."""
    if y.shape[1] % 2:
        raise InputError(f"a state of {y.shape[1]} channels cannot be split in halves: take an even width")
    first, second = torch.chunk(y, 2, 1)
    return first, second
