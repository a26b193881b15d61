"""Scheme swaps: Euler, Heun and RK4 for the equation that another scheme solves.

    y' = f(t, y)                               as they are
    y' in f(t, y) - N_K(y), K = {y >= 0}       projected: relu after each step
    y'' = f(t, y), y'(t_0) = 0                 on y' = v, v' = f(t, y)
    Y' = F(t, Z), Z' = c G(t, Y), c = -1, 1    on the pair (Y, Z)

A scheme with learned coefficients that change its equation (LM-ResNet's k, the implicit part of the damped
semi-implicit step) has no other scheme.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from resode.grids import Step
from resode.integrators import (
    IMEX,
    RK4,
    AdamsBashforth2,
    Coupling,
    Euler,
    ExplicitRungeKutta,
    FixedStep,
    Heun,
    LearnedTwoStep,
    Projected,
)
from resode.integrators.base import Carry, Coefficients, Evaluation, RightHandSide, halves
from resode.integrators.multistep import TwoStep
from resode.integrators.runge_kutta import advance

TABLEAUS: tuple[ExplicitRungeKutta, ...] = (Euler(), Heun(), RK4())


def other_schemes(integrator: FixedStep) -> tuple[FixedStep, ...]:
    """Euler, Heun and RK4 for the equation that a scheme solves, except itself; () where there is none."""
    make = _form(integrator)
    return () if make is None else tuple(s for s in map(make, TABLEAUS) if s.name != integrator.name)


def _form(integrator: FixedStep) -> Callable[[ExplicitRungeKutta], FixedStep] | None:
    """How a tableau solves the same equation."""
    if isinstance(integrator, LearnedTwoStep) or (
        isinstance(integrator, IMEX) and integrator.variant == "damped"
    ):
        return None
    if len(integrator.parts) == 2:
        sign = 1.0 if isinstance(integrator, Coupling) else -1.0
        return lambda scheme: OfPair(scheme, sign)
    if integrator.projects:
        return lambda scheme: Projected(scheme.name.lower())
    if integrator.second_order:
        return OfSecondOrder
    return None if integrator.order is None else lambda scheme: scheme


def is_multistep(integrator: FixedStep) -> bool:
    """Whether a step uses slopes of the step before, perhaps from before a jump of theta(t)."""
    return isinstance(integrator, AdamsBashforth2 | TwoStep) or integrator.first_same_as_last


@dataclass(frozen=True)
class _OnSystem(FixedStep):
    """An explicit Runge-Kutta scheme on a system of two equations."""

    scheme: ExplicitRungeKutta

    @property
    def order(self) -> int | None:
        """The order of the scheme."""
        return self.scheme.order

    @property
    def name(self) -> str:
        """The name of the scheme."""
        return self.scheme.name


@dataclass(frozen=True)
class OfSecondOrder(_OnSystem):
    """An explicit Runge-Kutta scheme on y' = v, v' = f(t, y), v = 0 at the start; the carry is (y, v)."""

    second_order: ClassVar[bool] = True

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        return self.scheme.evaluations(s)

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        y, v = carry if len(carry) == 2 else (carry[0], torch.zeros_like(carry[0]))
        velocities: list[Tensor] = []
        forces: list[Tensor] = []
        for i, row in enumerate(self.scheme.a):
            at = advance(y, s.h, row, velocities)
            velocities.append(advance(v, s.h, row, forces))
            forces.append(f(i, at))
        b = self.scheme.b
        return advance(y, s.h, b, velocities), advance(v, s.h, b, forces)


@dataclass(frozen=True)
class OfPair(_OnSystem):
    """An explicit Runge-Kutta scheme on Y' = F(t, Z), Z' = sign G(t, Y); the carry is (Y, Z)."""

    sign: float
    parts: ClassVar[tuple[str, ...]] = ("F", "G")

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        times = self.scheme.evaluations(s)
        return tuple(Evaluation(e.time, part) for e in times for part in self.parts)

    def start(self, y: Tensor, difference: Tensor | None = None) -> Carry:
        return halves(y)

    def state(self, carry: Carry) -> Tensor:
        return torch.cat(carry, 1)

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        y, z = carry
        of_y: list[Tensor] = []
        of_z: list[Tensor] = []
        for i, row in enumerate(self.scheme.a):
            first, second = advance(y, s.h, row, of_y), advance(z, s.h, row, of_z)
            of_y.append(f(2 * i, second))
            of_z.append(self.sign * f(2 * i + 1, first))
        b = self.scheme.b
        return advance(y, s.h, b, of_y), advance(z, s.h, b, of_z)
