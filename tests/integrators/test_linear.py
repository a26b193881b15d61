"""Theorem 3 and section 6: linear problems, stability polynomials, roots and intervals."""

import cmath
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resode.grids import TimeGrid
from resode.integrators import (
    IMEX,
    RK4,
    SSPRK3,
    AdamsBashforth2,
    Euler,
    Heun,
    Leapfrog,
    LearnedTwoStep,
    Midpoint,
    Momentum,
    StormerVerlet,
    SymplecticEuler,
    TwoStepMidpoint,
    integrators,
    solve,
)
from tests.integrators.problems import fixed

unit = st.floats(-3, 3)
ROUNDING = 1e-9  # of a modulus that is 1 where roots are double


@pytest.mark.parametrize(
    "scheme", [Euler(), Midpoint(), Heun(), SSPRK3(), RK4()], ids=lambda scheme: scheme.name
)
@given(real=unit, imaginary=unit, h=st.floats(0.1, 4))
@settings(deadline=None, max_examples=30)
def test_one_runge_kutta_step_multiplies_by_the_truncated_exponential(scheme, real, imaginary, h):
    """With as many stages as its order, R(z) = sum_{j <= p} z^j / j!."""
    z = complex(real, imaginary)
    exact = sum(z**j / math.factorial(j) for j in range(scheme.order + 1))
    y = torch.ones(1, 1, 1, 1, dtype=torch.complex128)
    end = complex(solve(scheme, TimeGrid((0.0, h)), lambda t, y: (z / h) * y, y)[-1])
    scale = max(1.0, abs(z)) ** scheme.order
    assert abs(end - exact) <= 1e-13 * scale
    assert abs(scheme.polynomial(z) - exact) <= 1e-13 * scale
    assert scheme.growth(z) == pytest.approx(abs(exact), abs=1e-13 * scale)


def roots(trace: complex, determinant: complex) -> tuple[complex, complex]:
    root = cmath.sqrt(trace**2 - 4 * determinant)
    return (trace + root) / 2, (trace - root) / 2


TWO_STEP = [  # scheme, and of y_{n+1} = trace y_n - determinant y_{n-1} these two, for z = h lambda
    (AdamsBashforth2(), lambda z: (1 + 1.5 * z, z / 2)),
    (TwoStepMidpoint(), lambda z: (2 * z, -1)),
    (TwoStepMidpoint(first="published"), lambda z: (2 * z, -1)),
    (Leapfrog(), lambda z: (2 + z, 1)),
    (Leapfrog(first="published"), lambda z: (2 + z, 1)),
    (Momentum(0.7), lambda z: (1.7 + 0.3 * z, 0.7)),
]


@pytest.mark.parametrize(("scheme", "recurrence"), TWO_STEP)
@given(real=st.floats(-1.5, 1.5), imaginary=st.floats(-1.5, 1.5))
@settings(deadline=None, max_examples=20)
def test_two_step_schemes_follow_their_roots(scheme, recurrence, real, imaginary):
    """y_n = alpha r^n + beta s^n with the roots r, s of the recurrence, from y_0 and y_1."""
    z, n = complex(real, imaginary), 12
    r, s = roots(*recurrence(z))
    y = torch.ones(1, 1, 1, 1, dtype=torch.complex128)
    states = [complex(y) for y in solve(scheme, TimeGrid.uniform(n), lambda t, y: z * y, y)]
    assert scheme.growth(z) == pytest.approx(max(abs(r), abs(s)), rel=1e-12)
    if abs(r - s) < 0.1:
        return  # nearly a double root: alpha and beta are ill conditioned
    alpha = (states[1] - s * states[0]) / (r - s)
    beta = states[0] - alpha
    for k, state in enumerate(states):
        size = (abs(alpha) + abs(beta)) * max(abs(r), abs(s), 1) ** k
        assert abs(alpha * r**k + beta * s**k - state) <= 1e-12 * size


@pytest.mark.parametrize("k", [-0.3, -0.1, 0.0, 0.4])
def test_the_learned_two_step_follows_its_roots(k):
    """y_{n+1} = (1 - k + z) y_n + k y_{n-1}."""
    z, n = -0.4, 10
    r, s = roots(1 - k + z, -k)
    y = torch.ones(1, 1, 1, 1, dtype=torch.complex128)
    coefficients = {"k": torch.full((n,), k, dtype=torch.float64)}
    states = solve(LearnedTwoStep(), TimeGrid.uniform(n), lambda t, y: z * y, y, coefficients)
    alpha = (complex(states[1]) - s) / (r - s)
    for j, state in enumerate(states):
        assert complex(state) == pytest.approx(alpha * r**j + (1 - alpha) * s**j, abs=1e-13)


def test_the_learned_two_step_states_its_growth_as_it_begins():
    for z in (-2.1, -1.0, -0.3, 0.2):
        worst = max(abs(r) for k in torch.linspace(-0.1, 0, 11).tolist() for r in roots(1 - k + z, -k))
        assert LearnedTwoStep().growth(z) == pytest.approx(worst, rel=1e-6)


@pytest.mark.parametrize("scheme", [SymplecticEuler(), StormerVerlet()])
@pytest.mark.parametrize("z", [0.3, 1.0, 1.9, 2.1])
def test_partitioned_schemes_multiply_the_oscillator_by_their_growth(scheme, z):
    """Y' = omega Z, Z' = -omega Y: the matrix of a step has determinant 1 and this spectral radius."""
    columns = torch.eye(2, dtype=torch.float64).reshape(2, 2, 1, 1)
    step = solve(scheme, TimeGrid.uniform(1), lambda t, y, part: z * y, columns)[-1].reshape(2, 2)
    eigenvalues = torch.linalg.eigvals(step)
    assert float(torch.linalg.det(step)) == pytest.approx(1, abs=1e-13)
    assert scheme.growth(1j * z) == pytest.approx(float(eigenvalues.abs().max()), rel=1e-12)


@pytest.mark.parametrize("variant", ["damped", "field"])
@pytest.mark.parametrize(("p", "q"), [(0, 0), (1, 0), (2, 3), (3, 4), (5, 1)])
def test_an_imex_step_multiplies_a_wave_by_its_rational_function(variant, p, q):
    height, width, h, decay = 6, 8, 0.7, -0.4
    kernel = torch.randn(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = 2 * math.pi * p / height, 2 * math.pi * q / width
    transform = sum(
        float(kernel[0, i + 1, j + 1]) * cmath.exp(1j * (a * i + b * j))
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    )
    rows, columns = torch.arange(height).double()[:, None], torch.arange(width).double()
    y = torch.cos(a * rows + b * columns + 0.3)[None, None]
    scheme = IMEX(variant)
    end = solve(scheme, TimeGrid((0.0, h)), lambda t, y: decay * y, y, {"B": kernel[None]})[-1]
    stiffness = h * abs(transform) ** 2
    exact = (1 + h * decay) / (1 + stiffness) if variant == "damped" else 1 + h * decay / (1 + stiffness)
    assert scheme.factor(h * decay, stiffness) == pytest.approx(exact, abs=1e-14)
    torch.testing.assert_close(end, exact * y, rtol=0, atol=1e-13)


@given(real=unit, imaginary=unit, stiffness=st.floats(0, 1e6))
def test_the_growth_of_imex_bounds_every_stiffness(real, imaginary, stiffness):
    for scheme in (IMEX("damped"), IMEX("field")):
        z = complex(real, imaginary)
        assert abs(scheme.factor(z, stiffness)) <= scheme.growth(z) + 1e-12
        assert scheme.growth(z) == pytest.approx(max(abs(scheme.factor(z, s)) for s in (0, 1e15)), abs=1e-12)


def interval(scheme, direction: complex) -> float:
    """The x up to which growth(x direction) <= 1."""
    low, high = 0.0, 1e-3
    while scheme.growth(high * direction) <= 1 + ROUNDING and high < 100:
        low, high = high, high + 0.01
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if scheme.growth(middle * direction) <= 1 + ROUNDING else (low, middle)
    return low


@pytest.mark.parametrize(
    ("scheme", "direction", "length"),
    [
        (Euler(), -1, 2.0),
        (Heun(), -1, 2.0),
        (Midpoint(), -1, 2.0),
        (SSPRK3(), -1, 2.5127),
        (RK4(), -1, 2.785),
        (SSPRK3(), 1j, math.sqrt(3)),
        (RK4(), 1j, 2 * math.sqrt(2)),
        (AdamsBashforth2(), -1, 1.0),
        (TwoStepMidpoint(), 1j, 1.0),
        (Leapfrog(), -1, 4.0),  # z = h^2 lambda
        (Momentum(0.9), -1, 2 * 1.9 / 0.1),
        (LearnedTwoStep(), -1, 2.0),  # that of Euler, k = 0
        (SymplecticEuler(), 1j, 2.0),
        (StormerVerlet(), 1j, 2.0),
        (IMEX(), -1, 2.0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_stability_intervals(scheme, direction, length):
    assert interval(scheme, direction) == pytest.approx(length, abs=5e-4)


@pytest.mark.parametrize(
    ("scheme", "direction"), [(Euler(), 1j), (Heun(), 1j), (TwoStepMidpoint(), -1), (SymplecticEuler(), -1)]
)
def test_schemes_without_an_interval_grow_at_once(scheme, direction):
    assert scheme.growth(0.1 * direction) > 1 + 1e-5


@pytest.mark.parametrize("name", fixed())
def test_every_scheme_states_its_growth(name):
    """Nothing grows where f = 0; far out on the real axis every one of these explicit schemes is unstable."""
    scheme = integrators.of(name)
    assert scheme.growth(0) == pytest.approx(1)
    assert scheme.growth(-100 if name != "imex" else -3) > 1
