"""Projected schemes: an explicit step, then the projection on the cone K = {y >= 0}, which is relu.

    y(t + h) ~ relu(y + h sum_i b_i k_i),        y' in f(t, y) - N_K(y)

N_K(y) is the normal cone: {0} inside K, and on its boundary what points out of it. The flow is that of a
differential inclusion: where a component is 0 and f would make it negative, it stays 0 until f grows positive
(Moreau's sweeping process, 1977, here with a fixed set; Nagurney & Zhang 1996, Projected Dynamical Systems
and Variational Inequalities). He's residual unit (arXiv:1512.03385) is `projected_euler` with h = 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from resode.errors import InputError, nearest
from resode.grids import Step
from resode.integrators.base import Carry, Coefficients, Evaluation, FixedStep, RightHandSide, integrators
from resode.integrators.runge_kutta import RK4, SSPRK3, Euler, ExplicitRungeKutta, Heun, Midpoint

SCHEMES: dict[str, ExplicitRungeKutta] = {
    "euler": Euler(), "midpoint": Midpoint(), "heun": Heun(), "ssprk3": SSPRK3(), "rk4": RK4()
}  # fmt: skip


@dataclass(frozen=True)
class Projected(FixedStep):
    """relu(a step of an explicit Runge-Kutta scheme): the projection on y >= 0 after each step.

    Its stages are not projected. A projection loses what it cuts off, so a step has no inverse.

    Args:
        scheme: euler, midpoint, heun, ssprk3 or rk4.

    Raises:
        InputError: another scheme.

    Example:
        >>> from resode import TimeGrid
        >>> solve, grid = resode.integrators.solve, TimeGrid.uniform(4, end=2.0)
        >>> [float(y) for y in solve(Projected("heun"), grid, lambda t, y: torch.cos(y) - 2, torch.ones(1))]
        [1.0, 0.376..., 0.0, 0.0, 0.0]
    """

    scheme: str
    projects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scheme not in tuple(SCHEMES):
            near = nearest(str(self.scheme), SCHEMES)
            raise InputError(f"projected: unknown scheme '{self.scheme}'{near} ({', '.join(SCHEMES)})")

    @property
    def order(self) -> int:
        """1: where a component reaches or leaves 0. While all are positive, the order of the scheme."""
        return 1

    @property
    def name(self) -> str:
        """Projected Euler, Projected Heun, ..."""
        return f"Projected {SCHEMES[self.scheme].name}"

    @property
    def equation(self) -> str:
        """One step of the scheme, in relu."""
        return f"relu({SCHEMES[self.scheme].equation})"

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """Those of the scheme."""
        return SCHEMES[self.scheme].evaluations(s)

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        (y,) = SCHEMES[self.scheme].step(s, f, carry, coefficients)
        return (F.relu(y),)

    def growth(self, z: complex) -> float:
        """|R(z)| of the scheme: relu keeps 0 and lengthens no difference."""
        return SCHEMES[self.scheme].growth(z)


@integrators.register("projected_euler", summary="Euler, then relu: He's post-activation unit where h = 1")
@dataclass(frozen=True, repr=False)
class ProjectedEuler(Projected):
    """relu(y + h f(t, y)), of order 1."""

    def __init__(self) -> None:
        super().__init__("euler")

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        (y,) = carry
        return (F.relu(torch.add(y, f(0, y), alpha=s.h)),)

    def __repr__(self) -> str:
        return "ProjectedEuler()"


integrators.register("projected", summary="a step of another explicit scheme (heun, rk4, ...), then relu")(
    Projected
)  # here: it is listed after the one without options
