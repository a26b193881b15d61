"""Multistep schemes: a step also uses the step before.

    Adams-Bashforth 2    y_{n+1} = y_n + h_n [(1 + w/2) f_n - (w/2) f_{n-1}],    w = h_n / h_{n-1}

and the two-step family, in the difference d_n = y_n - y_{n-1}, with d_0 = 0:

    d_{n+1} = a_n d_n + c_n f(t_n, y_n),    y_{n+1} = y_n + d_{n+1}

that is y_{n+1} = (1 - k) y_n + k y_{n-1} + c f with k = -a. The schemes differ in a and c only:

    learned two-step     a = -k_n, learned     c = h                    solves (1 + k) y' = f
    two-step midpoint    a = -1                c = 2 h                  y' = f
    leapfrog             a = w                 c = h_n (h_{n-1} + h_n) / 2    y'' = f
    momentum             a = g w               c = (1 - g) h            y' = v, v <- g v + (1 - g) f

If a is known and not zero, a step is inverted by y_n = y_{n+1} - d_{n+1}, d_n = (d_{n+1} - c f(y_n)) / a.
"""

import cmath
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from resode.errors import InputError, nearest
from resode.grids import Step, TimeGrid
from resode.integrators.base import Carry, Coefficients, Evaluation, FixedStep, RightHandSide, integrators


@integrators.register("adams_bashforth2", summary="Adams-Bashforth with variable steps, order 2")
@dataclass(frozen=True)
class AdamsBashforth2(FixedStep):
    """Adams-Bashforth of order 2 with variable steps (Hairer, Norsett & Wanner 1993, III.5); Euler starts it.

    y_{n+1} = y_n + h_n [(1 + w/2) f_n - (w/2) f_{n-1}], w = h_n / h_{n-1}; one evaluation a step.
    The carry is (y, f_{n-1}), and (y,) before the first step.
    """

    equation = "y + h [(1 + w/2) f(t, y) - (w/2) f_before], w = h / h_before"

    @property
    def order(self) -> int:
        """2: the Euler start adds an error of h^2 once."""
        return 2

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """One, at t."""
        return (Evaluation(s.t),)

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        y, h = carry[0], s.h
        slope = f(0, y)
        if s.before is None:
            return torch.add(y, slope, alpha=h), slope
        w = h / s.before
        y = torch.add(y, slope, alpha=h * (1 + w / 2))
        return torch.add(y, carry[1], alpha=-h * w / 2), slope

    def growth(self, z: complex) -> float:
        """The larger root of r^2 - (1 + 3z/2) r + z/2, equal steps."""
        return _larger_root(1 + 1.5 * z, z / 2)


class TwoStep(FixedStep):
    """The two-step family: d <- a d + c f(t, y), y <- y + d; a subclass gives a and c.

    The carry is (y, d), and (y,) before the first step, where d = 0.
    """

    @abstractmethod
    def weights(self, s: Step, coefficients: Coefficients) -> tuple[float | Tensor, float]:
        """(a, c) of a step; where d = 0, a is not used."""

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """One, at t."""
        return (Evaluation(s.t),)

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        y = carry[0]
        a, c = self.weights(s, coefficients)
        slope = f(0, y)
        d = slope * c if len(carry) == 1 else torch.add(_scaled(carry[1], a), slope, alpha=c)
        return y + d, d

    def inverse(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        if not self.reversible:
            return super().inverse(s, f, carry, coefficients)
        y = carry[0] - carry[1]
        if s.before is None:
            return (y,)
        a, c = self.weights(s, coefficients)
        d = torch.sub(carry[1], f(0, y), alpha=c)
        return y, d if isinstance(a, float) and a == 1 else d / a

    def growth(self, z: complex) -> float:
        """The larger root of r^2 - (1 + a + c z) r + a, equal steps of length 1."""
        a, c = self.weights(Step(1.0, 2.0, before=1.0), {})
        return _larger_root(1 + float(a) + c * z, float(a))


@integrators.register("learned_two_step", summary="LM-ResNet: two steps with a learned weight")
@dataclass(frozen=True)
class LearnedTwoStep(TwoStep):
    """The LM-ResNet step, y_{n+1} = (1 - k) y_n + k y_{n-1} + h f(t_n, y_n) (Lu 2018, arXiv:1710.10121).

    k is learned, initially uniform in [-0.1, 0]. The scheme solves (1 + k) y' = f, another equation for every
    k: it has no order. It counts as irreversible: unless |k| = 1, an inverse would amplify rounding in every
    step.

    Args:
        first: the first step; "euler": y_{-1} = y_0, an Euler step without k; "moving": y_{-1} comes with the
            state, which a `UnitConnector` gives: y_0 = y_{-1} + f of the unit.
        k: "step", one number for each step; "channel", one for each step and channel.

    Raises:
        InputError: another first step or k.
    """

    first: str = "euler"
    k: str = "step"

    def __post_init__(self) -> None:
        _refuse_first(self.name, self.first, ("euler", "moving"))
        if self.k not in ("step", "channel"):
            known = ("step", "channel")
            raise InputError(
                f"{self.name}: unknown k '{self.k}'{nearest(str(self.k), known)} (step, channel)"
            )

    @property
    def equation(self) -> str:
        """One step."""
        start = "an Euler step first" if self.first == "euler" else "y_before of the first step given"
        each = "" if self.k == "step" else " for each channel"
        return f"(1 - k) y + k y_before + h f(t, y), k learned{each}, {start}"

    @property
    def moving(self) -> bool:
        """Whether y_{-1} is given."""
        return self.first == "moving"

    @property
    def order(self) -> None:
        """None: k is not tied to h."""
        return

    def coefficients(self, grid: TimeGrid, width: int) -> dict[str, Tensor]:
        """`k` of shape (steps,) or (steps, width, 1, 1), without the first step where that is Euler's."""
        shape = (grid.steps,) if self.k == "step" else (grid.steps, width, 1, 1)
        drawn = (
            torch.rand(shape) * -0.1
        )  # for all steps: the stream of random numbers is that of either start
        k = drawn if self.moving else drawn[1:].clone()
        return {"k": k} if len(k) else {}

    def start(self, y: Tensor, difference: Tensor | None = None) -> Carry:
        return (y,) if difference is None else (y, difference)

    def weights(self, s: Step, coefficients: Coefficients) -> tuple[float | Tensor, float]:
        return -coefficients["k"] if "k" in coefficients else 0.0, s.h

    def growth(self, z: complex) -> float:
        """The larger root for the initial k, from 0 to -0.1."""
        return max(_larger_root(1 + a + z, a) for a in (0.0, 0.1))


@integrators.register("two_step_midpoint", summary="two-step midpoint, order 2, reversible, equal steps")
@dataclass(frozen=True)
class TwoStepMidpoint(TwoStep):
    """The two-step midpoint rule, y_{n+1} = y_{n-1} + 2 h f(t_n, y_n) (Chang 2018, arXiv:1709.03698).

    Stable only for eigenvalues on the imaginary axis with h |lambda| < 1, in both directions of time: made
    for antisymmetric fields. With a dissipative field a parasitic solution grows, and rounding with it.

    Args:
        first: the first step; "euler": y_1 = y_0 + h f, order 2; "published": y_{-1} = y_0 and so
            y_1 = y_0 + 2 h f, order 1.

    Raises:
        InputError: another first step, or (in `check`) a grid of unequal steps.
    """

    first: str = "euler"

    reversible: ClassVar[bool] = True
    equation = "y_before + 2 h f(t, y)"

    def __post_init__(self) -> None:
        _refuse_first(self.name, self.first, ("euler", "published"))

    @property
    def order(self) -> int:
        """2; 1 with the published first step."""
        return 2 if self.first == "euler" else 1

    def check(self, grid: TimeGrid) -> None:
        super().check(grid)
        if not grid.is_uniform:
            raise InputError(
                f"{self.name} needs equal steps, this grid has steps from {min(grid.intervals):g} to "
                f"{max(grid.intervals):g}; take TimeGrid.uniform, or adams_bashforth2"
            )

    def weights(self, s: Step, coefficients: Coefficients) -> tuple[float, float]:
        return -1.0, s.h if s.before is None and self.first == "euler" else 2 * s.h


@integrators.register("leapfrog", summary="leapfrog for y'' = f, order 2, reversible")
@dataclass(frozen=True)
class Leapfrog(TwoStep):
    """Leapfrog for y'' = f(t, y), y'(t_0) = 0 (Ruthotto & Haber 2018, arXiv:1804.04272).

    v += (h_{n-1} + h_n)/2 f(t_n, y_n), y += h_n v, so that d = h v: a = w = h_n / h_{n-1} and
    c = h_n (h_{n-1} + h_n)/2; with equal steps y_{n+1} = 2 y_n - y_{n-1} + h^2 f.

    Args:
        first: the first kick; "half": h/2, order 2; "published": h (that is y_{-1} = y_0), order 1.

    Raises:
        InputError: another first kick.
    """

    first: str = "half"

    second_order: ClassVar[bool] = True
    reversible: ClassVar[bool] = True
    equation = "v += (h_before + h)/2 f(t, y), y += h v"

    def __post_init__(self) -> None:
        _refuse_first(self.name, self.first, ("half", "published"))

    @property
    def order(self) -> int:
        """2; 1 with the published first step."""
        return 2 if self.first == "half" else 1

    def weights(self, s: Step, coefficients: Coefficients) -> tuple[float, float]:
        h = s.h
        if s.before is None:
            return 1.0, h * h / 2 if self.first == "half" else h * h
        return h / s.before, h * (s.before + h) / 2


@integrators.register("momentum", summary="momentum ResNet, order 1, reversible")
@dataclass(frozen=True)
class Momentum(TwoStep):
    """The momentum ResNet, v <- g v + (1 - g) f(t, y), y <- y + h v, v_0 = 0 (Sander 2021, arXiv:2102.07870).

    d = h v, so that a = g w and c = (1 - g) h. For fixed g it has order 1 (y + h g/(1-g) v makes Euler
    steps), with an error proportional to g/(1 - g): the velocity lags that many steps behind f. Running
    backwards multiplies a rounding error by 1/g in each step.

    Args:
        g: the momentum, 0 < g < 1.

    Raises:
        InputError: another g.
    """

    g: float = 0.9

    reversible: ClassVar[bool] = True
    equation = "v <- g v + (1 - g) f(t, y), y + h v"

    def __post_init__(self) -> None:
        if not isinstance(self.g, int | float) or not 0 < self.g < 1:
            raise InputError(f"{self.name}: a momentum g of {self.g!r}; a number with 0 < g < 1 is needed")

    @property
    def order(self) -> int:
        """1, observed once the steps are much smaller than (1 - g) times the time scale of the solution."""
        return 1

    def weights(self, s: Step, coefficients: Coefficients) -> tuple[float, float]:
        w = 1.0 if s.before is None else s.h / s.before
        return self.g * w, (1 - self.g) * s.h

    def amplification(self, grid: TimeGrid) -> float:
        """g^-n."""
        exponent = -grid.steps * math.log(self.g)
        return math.exp(exponent) if exponent < 700 else math.inf


def _scaled(d: Tensor, a: float | Tensor) -> Tensor:
    """The product a d, without a kernel where a = 1 (leapfrog with equal steps)."""
    return d if isinstance(a, float) and a == 1 else a * d


def _larger_root(trace: complex, determinant: complex) -> float:
    """The larger modulus of the roots of r^2 - trace r + determinant."""
    root = cmath.sqrt(trace * trace - 4 * determinant)
    return max(abs(trace + root), abs(trace - root)) / 2


def _refuse_first(name: str, first: str, known: tuple[str, str]) -> None:
    if first not in known:
        raise InputError(
            f"{name}: unknown first step '{first}'{nearest(str(first), known)} ({', '.join(known)})"
        )
