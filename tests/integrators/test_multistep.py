"""The two-step family: one recurrence, of which the published schemes are points."""

import pytest
import torch

from resode.errors import InputError
from resode.grids import TimeGrid
from resode.integrators import (
    Leapfrog,
    LearnedTwoStep,
    Momentum,
    TwoStep,
    TwoStepMidpoint,
    integrators,
    solve,
)
from resode.integrators.base import of_step
from tests.integrators.problems import fixed

STEPS = 16
Y = torch.linspace(-1, 1, 2 * 3 * 2 * 2, dtype=torch.float64).reshape(2, 3, 2, 2)


def f(t, y):
    return torch.sin(y) - y**2 / 3


def learned(k: float, h: float) -> list[torch.Tensor]:
    coefficients = {"k": torch.full((STEPS,), k, dtype=torch.float64)}
    return solve(LearnedTwoStep(), TimeGrid.uniform(STEPS, STEPS * h), f, Y, coefficients)


@pytest.mark.parametrize("h", [0.125, 0.25])
def test_the_learned_scheme_with_k_minus_1_is_the_published_leapfrog(h):
    """h -> h^2, bit for bit."""
    leapfrog = solve(Leapfrog(first="published"), TimeGrid.uniform(STEPS, STEPS * h), f, Y)
    assert all(map(torch.equal, learned(-1.0, h**2), leapfrog))


@pytest.mark.parametrize("h", [0.03125, 0.0625])
def test_the_learned_scheme_with_k_1_is_the_published_midpoint(h):
    """h -> 2 h, bit for bit."""
    midpoint = solve(TwoStepMidpoint(first="published"), TimeGrid.uniform(STEPS, STEPS * h), f, Y)
    assert all(map(torch.equal, learned(1.0, 2 * h), midpoint))


@pytest.mark.parametrize("k", [-0.1, -0.5, 0.3])
def test_the_learned_scheme_is_the_published_recurrence(k):
    """y_{n+1} = (1 - k) y_n + k y_{n-1} + h f(y_n), y_{-1} = y_0."""
    h, before, y = 0.1, Y, Y
    for state in learned(k, h):
        torch.testing.assert_close(state, y, rtol=1e-13, atol=1e-13)
        before, y = y, (1 - k) * y + k * before + h * f(0, y)


def test_the_learned_scheme_without_memory_is_euler():
    euler = solve(integrators.of("euler"), TimeGrid.uniform(STEPS, STEPS * 0.1), f, Y)
    for ours, theirs in zip(learned(0.0, 0.1), euler, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_momentum_is_the_published_pair_on_any_grid():
    """v <- g v + (1 - g) f(y); y <- y + h v; v_0 = 0."""
    grid, g = TimeGrid((0.0, 0.3, 0.4, 0.9, 1.0)), 0.6
    y, v = Y, torch.zeros_like(Y)
    for h, state in zip((*grid.intervals, 0.0), solve(Momentum(g), grid, f, Y), strict=True):
        torch.testing.assert_close(state, y, rtol=0, atol=1e-13)
        v = g * v + (1 - g) * f(0, y)
        y = y + h * v


def test_leapfrog_is_kick_and_drift_on_any_grid():
    """v += (h_{k-1} + h_k)/2 f(y); y += h_k v; first kick h/2."""
    grid = TimeGrid((0.0, 0.3, 0.4, 0.9, 1.0))
    y, v, before = Y, torch.zeros_like(Y), 0.0
    for h, state in zip((*grid.intervals, 0.0), solve(Leapfrog(), grid, f, Y), strict=True):
        torch.testing.assert_close(state, y, rtol=0, atol=1e-13)
        v = v + (before + h) / 2 * f(0, y)
        y, before = y + h * v, h


def test_k_begins_in_its_interval():
    torch.manual_seed(0)
    k = LearnedTwoStep().coefficients(TimeGrid.uniform(1000), 4)["k"]
    assert k.shape == (999,)
    assert -0.1 <= float(k.min()) < -0.099
    assert -0.001 < float(k.max()) <= 0
    torch.manual_seed(0)
    assert torch.equal(k, LearnedTwoStep().coefficients(TimeGrid.uniform(1000), 4)["k"])


@pytest.mark.parametrize("k", ["step", "channel"])
@pytest.mark.parametrize("first", ["euler", "moving"])
def test_every_k_is_learned(first, k):
    """An Euler step has none; per channel there is one for each."""
    scheme, grid, y = LearnedTwoStep(first, k), TimeGrid.uniform(3, 0.3), torch.randn(2, 4, 3, 3)
    learned = {name: value.requires_grad_() for name, value in scheme.coefficients(grid, 4).items()}
    carry = scheme.start(y, torch.randn_like(y) if scheme.moving else None)
    for j in range(grid.steps):
        carry = scheme.step(grid.step(j), lambda i, y: -y.tanh(), carry, of_step(learned, j, grid.steps))
    carry[0].square().sum().backward()
    assert learned["k"].shape == (3 if first == "moving" else 2, *(() if k == "step" else (4, 1, 1)))
    assert (learned["k"].grad != 0).all()


def test_a_moving_start_continues_the_steps_before():
    """Stopped after two steps, and continued from y and y - y_before."""
    grid, scheme = TimeGrid.uniform(4, 0.4), LearnedTwoStep()
    k = {"k": torch.tensor([-0.3, 0.2, 0.6], dtype=torch.float64)}
    whole = solve(scheme, grid, f, Y, k)
    carry = LearnedTwoStep("moving").start(whole[2], whole[2] - whole[1])
    for j in (2, 3):
        s = grid.step(j)
        carry = scheme.step(s, lambda i, y, s=s: f(s.t, y), carry, of_step(k, j, grid.steps))
    torch.testing.assert_close(carry[0], whole[4], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"first": "movin"}, "did you mean 'moving'"), ({"k": "chanel"}, "unknown k 'chanel'; did you mean")],
)
def test_other_forms_of_the_learned_step_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LearnedTwoStep(**options)


def test_the_family_is_one():
    """All of them are members, which say a and c and nothing of stepping."""
    members = fixed(where=lambda scheme: isinstance(scheme, TwoStep))
    assert set(members) == {"learned_two_step", "two_step_midpoint", "leapfrog", "momentum"}
    for name in members:
        assert not {"step", "inverse"} & set(vars(type(integrators.of(name))))
