"""Partitioned schemes: the channels are two halves (Y, Z), each moved by the other, so a step can be undone.

    symplectic Euler   Y' = Y + h F(t, Z)        Z' = Z - h G(t, Y')
    Stormer-Verlet     Zh = Z - (h/2) G(t, Y)    Y' = Y + h F(t + h/2, Zh)    Z' = Zh - (h/2) G(t + h, Y')
    coupling           Y' = Y + h F(t, Z)        Z' = Z + h G(t, Y')

The first two solve the Hamiltonian system Y' = F(t, Z), Z' = -G(t, Y), the coupling Y' = F, Z' = +G. Each
line is a shear: its inverse is the same line with the other sign, exact but for rounding. Their `growth` is
that of the oscillator Y' = omega Z, Z' = -omega Y, whose eigenvalues are +-i omega: z = i h omega.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from resode.grids import TimeGrid
from resode.integrators.base import Carry, Evaluation, FixedStep, Numbers, RightHandSide, halves
from resode.integrators.multistep import Leapfrog


class Partitioned(FixedStep):
    """Schemes for a state split in channel halves, carried as (Y, Z, ...)."""

    parts: ClassVar[tuple[str, ...]] = ("F", "G")
    reversible: ClassVar[bool] = True

    def start(self, y: Tensor) -> Carry:
        return halves(y)

    def state(self, carry: Carry) -> Tensor:
        return torch.cat(carry[:2], 1)

    def growth(self, z: complex) -> float:
        """Of the oscillator, where each half makes leapfrog's steps for lambda^2: |z| <= 2 is stable."""
        return Leapfrog().growth(z * z)


class Shears(Partitioned):
    """Y' = Y + h F(t_k, Z), Z' = Z + sign h G(t_k, Y'); two evaluations a step."""

    sign: ClassVar[float]

    def evaluations(self, grid: TimeGrid) -> tuple[Evaluation, ...]:
        """F and G at t_k, in this order."""
        return tuple(Evaluation(t, part) for t in grid.nodes[:-1] for part in self.parts)

    def step(self, k: int, grid: TimeGrid, f: RightHandSide, carry: Carry, numbers: Numbers) -> Carry:
        y, z = carry
        h = grid.nodes[k + 1] - grid.nodes[k]
        y = torch.add(y, f(2 * k, z), alpha=h)
        return y, torch.add(z, f(2 * k + 1, y), alpha=self.sign * h)

    def inverse(self, k: int, grid: TimeGrid, f: RightHandSide, carry: Carry, numbers: Numbers) -> Carry:
        y, z = carry
        h = grid.nodes[k + 1] - grid.nodes[k]
        z = torch.sub(z, f(2 * k + 1, y), alpha=self.sign * h)
        return torch.sub(y, f(2 * k, z), alpha=h), z


@dataclass(frozen=True)
class SymplecticEuler(Shears):
    """Symplectic Euler for Y' = F(t, Z), Z' = -G(t, Y), order 1 (Chang 2018, arXiv:1709.03698, as Verlet)."""

    sign: ClassVar[float] = -1.0
    equation = "Y + h F(t, Z), then Z - h G(t, Y)"

    @property
    def order(self) -> int:
        """1."""
        return 1


@dataclass(frozen=True)
class Coupling(Shears):
    """The additive coupling of RevNet (Gomez 2017, arXiv:1707.04585), there with h = 1.

    It is the symplectic Euler step of Y' = F(t, Z), Z' = G(t, Y), but stated as a layer: no order.
    """

    sign: ClassVar[float] = 1.0
    equation = "Y + h F(t, Z), then Z + h G(t, Y)"

    @property
    def order(self) -> None:
        """None."""
        return


@dataclass(frozen=True)
class StormerVerlet(Partitioned):
    """Stormer-Verlet for Y' = F(t, Z), Z' = -G(t, Y) (Hairer, Lubich & Wanner 2003), order 2.

    The last slope of a step is the first of the next: 2 n + 1 evaluations on n steps. The carry is
    (Y, Z, G(t_k, Y)), and (Y, Z) before the first step.
    """

    equation = "Z - (h/2) G(t, Y), Y + h F(t + h/2, Z), Z - (h/2) G(t + h, Y)"

    @property
    def order(self) -> int:
        """2."""
        return 2

    def evaluations(self, grid: TimeGrid) -> tuple[Evaluation, ...]:
        """G at t_0, then for each step F at its middle and G at its end."""
        steps = zip(grid.nodes, grid.nodes[1:], strict=False)
        each = ((Evaluation((a + b) / 2, "F"), Evaluation(b, "G")) for a, b in steps)
        return (Evaluation(grid.start, "G"), *(evaluation for pair in each for evaluation in pair))

    def step(self, k: int, grid: TimeGrid, f: RightHandSide, carry: Carry, numbers: Numbers) -> Carry:
        y, z = carry[:2]
        h = grid.nodes[k + 1] - grid.nodes[k]
        slope = f(0, y) if k == 0 else carry[2]
        z = torch.sub(z, slope, alpha=h / 2)
        y = torch.add(y, f(2 * k + 1, z), alpha=h)
        slope = f(2 * k + 2, y)
        return y, torch.sub(z, slope, alpha=h / 2), slope

    def inverse(self, k: int, grid: TimeGrid, f: RightHandSide, carry: Carry, numbers: Numbers) -> Carry:
        y, z, slope = carry
        h = grid.nodes[k + 1] - grid.nodes[k]
        z = torch.add(z, slope, alpha=h / 2)
        y = torch.sub(y, f(2 * k + 1, z), alpha=h)
        slope = f(2 * k, y)
        z = torch.add(z, slope, alpha=h / 2)
        return (y, z, slope) if k else (y, z)
