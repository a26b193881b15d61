"""Partitioned schemes: the channels are two halves (Y, Z), each moved by the other; a step can be inverted.

    symplectic Euler   Y' = Y + h F(t, Z)        Z' = Z - h G(t, Y')
    Stormer-Verlet     Zh = Z - (h/2) G(t, Y)    Y' = Y + h F(t + h/2, Zh)    Z' = Zh - (h/2) G(t + h, Y')
    coupling           Y' = Y + h F(t, Z)        Z' = Z + h G(t, Y')

The first two solve the Hamiltonian system Y' = F(t, Z), Z' = -G(t, Y), the coupling Y' = F, Z' = +G. Each
line is a shear: its inverse is the same line with the other sign, exact up to rounding. `growth` is that of
the oscillator Y' = omega Z, Z' = -omega Y, whose eigenvalues are +-i omega: z = i h omega.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from resode.grids import Step
from resode.integrators.base import (
    Carry,
    Coefficients,
    Evaluation,
    FixedStep,
    RightHandSide,
    halves,
    integrators,
)
from resode.integrators.multistep import Leapfrog


class Partitioned(FixedStep):
    """Schemes for a state split in channel halves, carried as (Y, Z, ...)."""

    parts: ClassVar[tuple[str, ...]] = ("F", "G")
    reversible: ClassVar[bool] = True

    def start(self, y: Tensor, difference: Tensor | None = None) -> Carry:
        return halves(y)

    def state(self, carry: Carry) -> Tensor:
        return torch.cat(carry[:2], 1)

    def growth(self, z: complex) -> float:
        """The growth of the oscillator: each half makes leapfrog steps for lambda^2, stable to |z| = 2."""
        return Leapfrog().growth(z * z)


class Shears(Partitioned):
    """Y' = Y + h F(t, Z), Z' = Z + sign h G(t, Y'); two evaluations per step."""

    sign: ClassVar[float]

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """F and G at t."""
        return Evaluation(s.t, "F"), Evaluation(s.t, "G")

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        y, z = carry
        y = torch.add(y, f(0, z), alpha=s.h)
        return y, torch.add(z, f(1, y), alpha=self.sign * s.h)

    def inverse(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        y, z = carry
        z = torch.sub(z, f(1, y), alpha=self.sign * s.h)
        return torch.sub(y, f(0, z), alpha=s.h), z


@integrators.register("symplectic_euler", summary="Hamiltonian on two halves, order 1, reversible")
@dataclass(frozen=True)
class SymplecticEuler(Shears):
    """Symplectic Euler for Y' = F(t, Z), Z' = -G(t, Y), order 1 (Chang 2018, arXiv:1709.03698, as Verlet)."""

    sign: ClassVar[float] = -1.0
    equation = "Y + h F(t, Z), then Z - h G(t, Y)"

    @property
    def order(self) -> int:
        """1."""
        return 1


@integrators.register("stormer_verlet", summary="Hamiltonian on two halves, order 2, reversible")
@dataclass(frozen=True)
class StormerVerlet(Partitioned):
    """Stormer-Verlet for Y' = F(t, Z), Z' = -G(t, Y) (Hairer, Lubich & Wanner 2003), order 2.

    The last slope of a step is the first of the next one: 2 n + 1 evaluations on n steps. The carry is
    (Y, Z, G(t, Y)); before the first step it is (Y, Z).
    """

    first_same_as_last: ClassVar[bool] = True
    equation = "Z - (h/2) G(t, Y), Y + h F(t + h/2, Z), Z - (h/2) G(t + h, Y)"

    @property
    def order(self) -> int:
        """2."""
        return 2

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """G at t, F at the middle, G at the end."""
        return Evaluation(s.t, "G"), Evaluation((s.t + s.end) / 2, "F"), Evaluation(s.end, "G")

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        y, z = carry[:2]
        slope = f(0, y) if s.before is None else carry[2]
        z = torch.sub(z, slope, alpha=s.h / 2)
        y = torch.add(y, f(1, z), alpha=s.h)
        slope = f(2, y)
        return y, torch.sub(z, slope, alpha=s.h / 2), slope

    def inverse(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        y, z, slope = carry
        z = torch.add(z, slope, alpha=s.h / 2)
        y = torch.sub(y, f(1, z), alpha=s.h)
        slope = f(0, y)
        z = torch.add(z, slope, alpha=s.h / 2)
        return (y, z) if s.before is None else (y, z, slope)


@integrators.register("coupling", summary="RevNet on two halves, reversible")
@dataclass(frozen=True)
class Coupling(Shears):
    """The additive coupling of RevNet (Gomez 2017, arXiv:1707.04585), there with h = 1.

    It is the symplectic Euler step of Y' = F(t, Z), Z' = G(t, Y), but published as a layer: no order.
    """

    sign: ClassVar[float] = 1.0
    equation = "Y + h F(t, Z), then Z + h G(t, Y)"

    @property
    def order(self) -> None:
        """None."""
        return
