"""Explicit Runge-Kutta schemes, each from its Butcher tableau (Hairer, Norsett & Wanner 1993, chapter II).

    k_i = f(t + c_i h, y + h sum_{j<i} a_ij k_j),    y(t + h) ~ y + h sum_i b_i k_i

A tableau is consistent if sum_i b_i = 1 and c_i = sum_j a_ij. It has order p if the conditions of all rooted
trees with at most p nodes hold: one of order 1, one of 2, two of 3, four of 4. On y' = lambda y a step
multiplies by the polynomial R(z) = 1 + z b^T (I - z A)^{-1} 1, z = h lambda.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from resode.errors import InputError
from resode.grids import Step
from resode.integrators.base import Carry, Coefficients, Evaluation, FixedStep, RightHandSide, integrators

TOLERANCE = 1e-11  # of a condition; coefficients are rounded to float64


@dataclass(frozen=True)
class ExplicitRungeKutta(FixedStep):
    """An explicit scheme of s stages from its Butcher tableau.

    Args:
        a: s rows of s coefficients each, strictly lower triangular; numbers, or fractions such as "1/3".
        b: the s weights of the slopes.
        c: the s nodes within a step.
        order: the order of convergence (default: the highest one whose conditions hold, at most 4).
        label: the name of the scheme in messages.

    Raises:
        InputError: a tableau that is not consistent, not explicit, or not of the stated order. The conditions
            are checked up to order 4; for a higher order also the number of stages.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int | None = None
    label: str = ""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "a", tuple(_row(row) for row in self.a))
            object.__setattr__(self, "b", _row(self.b))
            object.__setattr__(self, "c", _row(self.c))
        except (TypeError, ValueError, ZeroDivisionError):
            raise InputError(
                f"{self.name}: a (rows), b and c are lists of numbers, or of fractions such as '1/3'"
            ) from None
        self._check_shape()
        self._check_order()

    def _check_shape(self) -> None:
        s = len(self.b)
        if not s or len(self.c) != s or len(self.a) != s or any(len(row) != s for row in self.a):
            raise InputError(
                f"{self.name}: b has {s} weights, so c needs {s} nodes and a {s} rows of {s} coefficients "
                f"(given: {len(self.c)} nodes, rows of {[len(row) for row in self.a]})"
            )
        for i, row in enumerate(self.a):
            if any(row[i:]):
                raise InputError(
                    f"{self.name}: row {i + 1} of a reaches its diagonal; "
                    "an explicit scheme is strictly lower triangular"
                )
            if not _near(math.fsum(row), self.c[i]):
                raise InputError(
                    f"{self.name}: c_{i + 1} = {self.c[i]:g} has to be the sum of row {i + 1} of a, "
                    f"which is {math.fsum(row):g}"
                )

    def _check_order(self) -> None:
        failing = [line for line in _conditions(self.a, self.b, self.c) if not _near(line[2], line[3])]
        reached = min((of - 1 for of, *_ in failing), default=4)
        order = max(reached, 1) if self.order is None else self.order
        if not isinstance(order, int) or isinstance(order, bool) or order < 1:
            raise InputError(f"{self.name}: an order of {order!r}; a positive integer is needed")
        for of, condition, value, target in failing:
            if of <= order:
                exact = Fraction(target).limit_denominator(99)
                raise InputError(
                    f"{self.name}: order {order} needs {condition} = {exact}, but it is {value:.12g} "
                    f"(a condition of order {of}); correct the tableau or the order"
                )
        if order > 4 and len(self.b) <= order:
            raise InputError(
                f"{self.name}: no explicit scheme of {len(self.b)} stages has order {order}; "
                f"it takes at least {order + 1}"
            )
        object.__setattr__(self, "order", order)

    @property
    def equation(self) -> str:
        """One step, with the weights and nodes of its slopes k_i = f(t + c_i h, y + h sum_j a_ij k_j)."""
        if len(self.b) == 1:
            return "y + h f(t, y)"
        b, c = (", ".join(str(Fraction(x).limit_denominator(99)) for x in row) for row in (self.b, self.c))
        return f"y + h b.k, b = ({b}), c = ({c})"

    @property
    def name(self) -> str:
        """The label, or "Runge-Kutta"."""
        return self.label or "Runge-Kutta"

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """At t + c_i h; c = 0 and c = 1 give the nodes bit for bit."""
        return tuple(Evaluation((1 - c) * s.t + c * s.end) for c in self.c)

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        (y,) = carry
        slopes: list[Tensor] = []
        for i, row in enumerate(self.a):
            slopes.append(f(i, advance(y, s.h, row, slopes)))
        return (advance(y, s.h, self.b, slopes),)

    def growth(self, z: complex) -> float:
        """|R(z)|."""
        return abs(self.polynomial(z))

    def polynomial(self, z: complex) -> complex:
        """The stability polynomial R(z)."""
        slopes: list[complex] = []
        for row in self.a:
            slopes.append(1 + z * _dot(row, slopes))
        value: complex = 1 + z * _dot(self.b, slopes)
        return value

    def polynomial_coefficients(self) -> tuple[float, ...]:
        """r_1, ..., r_s of R(z) = 1 + r_1 z + ... + r_s z^s: r_k = b^T A^(k-1) 1."""
        powers, found = [1.0] * len(self.b), []
        for _ in self.b:
            found.append(_dot(self.b, powers))
            powers = [_dot(row, powers) for row in self.a]
        return tuple(found)


def advance(y: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """The state y + h sum_i weights_i slopes_i: the first term makes a new tensor, others add in place."""
    total = y
    for weight, slope in zip(weights, slopes, strict=False):
        if weight:
            add = torch.add if total is y else Tensor.add_
            total = add(total, slope, alpha=h * weight)
    return total


Condition = tuple[int, str, float, float]  # order, name of the sum, its value, the required value


def _conditions(a: Sequence[Sequence[float]], b: Sequence[float], c: Sequence[float]) -> Iterator[Condition]:
    """Order conditions up to order 4, one for each rooted tree."""
    square, cube = [x**2 for x in c], [x**3 for x in c]
    ac, ac2 = [_dot(row, c) for row in a], [_dot(row, square) for row in a]
    yield 1, "sum b_i", math.fsum(b), 1
    yield 2, "sum b_i c_i", _dot(b, c), 1 / 2
    yield 3, "sum b_i c_i^2", _dot(b, square), 1 / 3
    yield 3, "sum b_i a_ij c_j", _dot(b, ac), 1 / 6
    yield 4, "sum b_i c_i^3", _dot(b, cube), 1 / 4
    yield 4, "sum b_i c_i a_ij c_j", _dot(b, [x * y for x, y in zip(c, ac, strict=True)]), 1 / 8
    yield 4, "sum b_i a_ij c_j^2", _dot(b, ac2), 1 / 12
    yield 4, "sum b_i a_ij a_jk c_k", _dot(b, [_dot(row, ac) for row in a]), 1 / 24


def _dot(x: Sequence[float], y: Sequence[Any]) -> Any:
    return sum(p * q for p, q in zip(x, y, strict=False))


def _near(value: float, target: float) -> bool:
    return abs(value - target) <= TOLERANCE  # False for NaN


def _row(values: Sequence[Any]) -> tuple[float, ...]:
    if isinstance(values, str):
        raise TypeError
    return tuple(float(Fraction(x)) if isinstance(x, str) else float(x) for x in values)


class _Textbook(ExplicitRungeKutta):
    """A scheme whose tableau is known: it takes no arguments."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@integrators.register("euler", summary="forward Euler, order 1: a ResNet where h = 1")
@dataclass(frozen=True, repr=False)
class Euler(_Textbook):
    """y + h f(t, y)."""

    def __init__(self) -> None:
        super().__init__(a=((0,),), b=(1,), c=(0,), order=1, label="Euler")


@integrators.register("midpoint", summary="explicit midpoint, order 2")
@dataclass(frozen=True, repr=False)
class Midpoint(_Textbook):
    """y + h f(t + h/2, y + h/2 f(t, y))."""

    def __init__(self) -> None:
        super().__init__(a=((0, 0), (1 / 2, 0)), b=(0, 1), c=(0, 1 / 2), order=2, label="Midpoint")


@integrators.register("heun", summary="Heun's method, order 2")
@dataclass(frozen=True, repr=False)
class Heun(_Textbook):
    """y + h/2 (k_1 + k_2): the trapezoidal rule, its end predicted by Euler."""

    def __init__(self) -> None:
        super().__init__(a=((0, 0), (1, 0)), b=(1 / 2, 1 / 2), c=(0, 1), order=2, label="Heun")


@integrators.register("ssprk3", summary="strong-stability-preserving Runge-Kutta, order 3")
@dataclass(frozen=True, repr=False)
class SSPRK3(_Textbook):
    """A convex combination of Euler steps: it keeps a norm that Euler keeps (Shu & Osher 1988)."""

    def __init__(self) -> None:
        super().__init__(
            a=((0, 0, 0), (1, 0, 0), (1 / 4, 1 / 4, 0)),
            b=(1 / 6, 1 / 6, 2 / 3),
            c=(0, 1, 1 / 2),
            order=3,
            label="SSPRK3",
        )


@integrators.register("rk4", summary="the classical Runge-Kutta method, order 4")
@dataclass(frozen=True, repr=False)
class RK4(_Textbook):
    """y + h/6 (k_1 + 2 k_2 + 2 k_3 + k_4): the classical method (Kutta 1901)."""

    def __init__(self) -> None:
        super().__init__(
            a=((0, 0, 0, 0), (1 / 2, 0, 0, 0), (0, 1 / 2, 0, 0), (0, 0, 1, 0)),
            b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
            c=(0, 1 / 2, 1 / 2, 1),
            order=4,
            label="RK4",
        )


integrators.register("runge_kutta", summary="an explicit Runge-Kutta method from your own tableau")(
    ExplicitRungeKutta
)  # here: it is listed after those with a name
