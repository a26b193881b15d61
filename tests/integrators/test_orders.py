"""Theorem 1: the observed order is the stated one, within 0.05."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from resode.grids import Step
from resode.integrators import (
    IMEX,
    Euler,
    ExplicitRungeKutta,
    FixedStep,
    Leapfrog,
    Momentum,
    TwoStepMidpoint,
    integrators,
    solve,
)
from resode.integrators.base import Carry, Coefficients, Evaluation, RightHandSide
from tests.integrators.problems import (
    END,
    fixed,
    observed_orders,
    orders,
    uniform,
    usable,
    warped,
)

# Where 64 ... 512 steps do not reach the limit h -> 0; the lag of momentum is g / (1 - g) = 9 steps.
FINER = {"momentum": (8192, 16384)}
STEPS = (64, 128, 256, 512)
WITH_ORDER = fixed(where=lambda scheme: scheme.order is not None)


@pytest.mark.parametrize("name", WITH_ORDER)
@pytest.mark.parametrize("grids", [uniform, warped])
def test_the_observed_order_is_the_stated_one(name, grids):
    scheme = integrators.of(name)
    if not usable(scheme, grids(64)):
        pytest.skip(f"{name} is for equal steps")
    for order in observed_orders(scheme, grids, FINER.get(name, STEPS)):
        assert order == pytest.approx(scheme.order, abs=0.05)


@pytest.mark.parametrize("scheme", [TwoStepMidpoint(first="published"), Leapfrog(first="published")])
def test_starting_as_published_costs_an_order(scheme):
    assert scheme.order == 1
    assert observed_orders(scheme)[-1] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("g", [0.2, 0.5])
def test_momentum_is_of_order_1_with_an_error_that_its_lag_makes(g):
    assert observed_orders(Momentum(g), steps=(2048, 4096))[0] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("variant", ["damped", "field"])
def test_imex_solves_its_own_equation_to_order_1(variant):
    """For one pixel L is the squared sum l of the kernel; damped: y' = -y^3 + sin 3t - l y."""
    kernel = torch.full((1, 3, 3), 0.1, dtype=torch.float64)
    l = 0.9**2 if variant == "damped" else 0.0  # noqa: E741
    y = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    f = lambda t, y: -(y**3) + math.sin(3 * t)  # noqa: E731
    rk4 = integrators.of("rk4")
    exact = solve(rk4, uniform(1024), lambda t, y: f(t, y) - l * y, y)[-1]
    errors = []
    for n in (256, 512, 1024):
        coefficients = {"B": kernel.expand(n, 1, 3, 3)}
        errors.append(float((solve(IMEX(variant), uniform(n), f, y, coefficients)[-1] - exact).abs()))
    assert orders(errors) == pytest.approx([1, 1], abs=0.05)


THREE_EIGHTHS = {
    "a": [[0, 0, 0, 0], ["1/3", 0, 0, 0], ["-1/3", 1, 0, 0], [1, -1, 1, 0]],
    "b": ["1/8", "3/8", "3/8", "1/8"],
    "c": [0, "1/3", "2/3", 1],
}


def test_a_tableau_of_ones_own_has_its_order():
    """Kutta's 3/8 rule, as a recipe would write it; its order is found from the order conditions."""
    scheme = integrators.of({"name": "runge_kutta", **THREE_EIGHTHS})
    assert scheme.order == 4
    assert observed_orders(scheme, steps=(256, 512))[0] == pytest.approx(4, abs=0.05)


@dataclass(frozen=True)
class Taylor(FixedStep):
    """A user's own scheme: Euler and half of Richardson's extrapolation, 2 Euler(h/2)^2 - Euler(h)."""

    @property
    def order(self) -> int:
        return 2

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        return Evaluation(s.t), Evaluation((s.t + s.end) / 2)

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        (y,), h = carry, s.h
        slope = f(0, y)
        halfway = y + h / 2 * slope
        finer = halfway + h / 2 * f(1, halfway)
        return (2 * finer - (y + h * slope),)


def test_an_integrator_of_ones_own_enters_by_being_registered(monkeypatch):
    monkeypatch.setattr(integrators, "_entries", dict(integrators._entries))
    integrators.register("extrapolated_euler", summary="Euler, extrapolated")(Taylor)
    assert "extrapolated_euler" in fixed(where=lambda scheme: scheme.order is not None)
    scheme = integrators.of("extrapolated_euler")
    assert integrators.describe(scheme) == "extrapolated_euler"
    for order in observed_orders(scheme):
        assert order == pytest.approx(2, abs=0.05)


def test_a_wrong_order_would_be_noticed():
    """The negative control: the check of order 2 refuses Euler."""
    assert all(abs(order - 2) > 0.05 for order in observed_orders(Euler()))


def _matrix(scheme: FixedStep, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(generator of the flow, the right-hand side's matrix by part F or f, by part G), random of norm 1."""
    one, other = torch.randn(2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = (m / torch.linalg.matrix_norm(m, 2) for m in (one, other))
    zero, eye = torch.zeros_like(one), torch.eye(size, dtype=torch.float64)
    if len(scheme.parts) > 1:
        return torch.cat((torch.cat((zero, one), 1), torch.cat((-other, zero), 1))), one, other
    if scheme.second_order:
        return torch.cat((torch.cat((zero, eye), 1), torch.cat((one, zero), 1))), one, other
    return one, one, other


@pytest.mark.parametrize("name", fixed(where=lambda s: s.order is not None and not s.projects))
def test_the_error_against_the_matrix_exponential_falls_at_the_stated_order(name):
    scheme = integrators.of(name)
    generator, f, g = _matrix(scheme, 3)
    width = 6 if len(scheme.parts) > 1 else 3
    y = torch.linspace(-1, 1, width, dtype=torch.float64)
    start = torch.cat((y, torch.zeros_like(y))) if scheme.second_order else y
    exact = (torch.linalg.matrix_exp(END * generator) @ start)[:width]

    def rhs(t: float, y: Tensor, part: str = "f") -> Tensor:
        return torch.einsum("ij,njhw->nihw", g if part == "G" else f, y)

    errors = []
    for n in (512, 1024) if name in FINER else (64, 128, 256):
        zero = {key: torch.zeros_like(v) for key, v in scheme.coefficients(uniform(n), width).items()}
        end = solve(scheme, uniform(n), rhs, y.reshape(1, -1, 1, 1), zero)[-1]
        errors.append(float((end.flatten() - exact).norm()))
    for order in orders(errors):
        assert order == pytest.approx(scheme.order, abs=0.05)


def test_order_conditions_name_the_one_that_fails():
    with pytest.raises(ValueError, match=r"order 3 needs sum b_i c_i\^2 = 1/3, but it is 0.25 .*order 3"):
        ExplicitRungeKutta(a=((0, 0), (0.5, 0)), b=(0, 1), c=(0, 0.5), order=3)
