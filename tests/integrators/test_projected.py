"""Projected schemes solve y' in f(t, y) - N_K(y) on K = {y >= 0}."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from resode.errors import InputError
from resode.gradients import Adjoint, Reversible
from resode.grids import TimeGrid
from resode.integrators import Projected, ProjectedEuler, solve
from resode.integrators.projected import SCHEMES
from tests.integrators.problems import FIRST, first_order, orders, uniform


def last(scheme, n: int, f, start: float, end: float = 2.0) -> float:
    y = torch.full((1, 1), start, dtype=torch.float64)
    return float(solve(scheme, TimeGrid.uniform(n, end), f, y)[-1])


@pytest.mark.parametrize("name", SCHEMES)
def test_while_nothing_is_cut_off_it_is_the_scheme_itself(name):
    """The solution of the smooth problem stays positive: same states, and the order of the scheme."""
    scheme, y = SCHEMES[name], torch.ones(1, 1, dtype=torch.float64)
    errors = []
    for n in (64, 128, 256):
        plain, projected = (solve(s, uniform(n), first_order, y) for s in (scheme, Projected(name)))
        assert all(map(torch.equal, plain, projected))
        errors.append(abs(float(projected[-1]) - FIRST[0]))
    for order in orders(errors):
        assert order == pytest.approx(scheme.order, abs=0.05)


@given(speed=st.floats(0.1, 3), start=st.floats(0, 2), n=st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_what_falls_stays_on_the_ground(speed, start, n):
    """y' in -c - N_K(y): y(t) = max(y_0 - c t, 0), exactly on any grid."""
    y = torch.full((1, 1), start, dtype=torch.float64)
    grid = TimeGrid.uniform(n, 2.0)
    for t, state in zip(
        grid.nodes, solve(ProjectedEuler(), grid, lambda t, y: torch.full_like(y, -speed), y), strict=True
    ):
        assert float(state) == pytest.approx(max(start - speed * t, 0), abs=1e-13)


@pytest.mark.parametrize("name", SCHEMES)
def test_across_the_boundary_the_order_is_one_at_most(name):
    """Skorokhod's reflection: y = y_0 + F + max(0, -min(y_0 + F)) for y' in F'(t) - N_K(y).

    F = sin 3t: y reaches 0, rests there and leaves it again at t = pi / 2.
    """
    start, end = 0.2, 2.0
    exact = start + math.sin(3 * end) + max(0.0, -(start - 1.0))  # sin 3t is -1 at pi / 2 < end
    f = lambda t, y: torch.full_like(y, 3 * math.cos(3 * t))  # noqa: E731
    errors = [abs(last(Projected(name), n, f, start) - exact) for n in (100, 1000, 10000)]
    assert all(e < 5 / n for e, n in zip(errors, (100, 1000, 10000), strict=True))
    assert ProjectedEuler().order == Projected(name).order == 1


def test_at_the_boundary_only_what_points_outwards_is_cut_off():
    """A rotation from (1, 0): y_2 rises; started so that y_2 would fall, it rests while y_1 stays."""
    y = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    up, down = (lambda t, y, s=s: s * torch.stack((-y[:, 1], y[:, 0]), 1) for s in (1, -1))
    assert (solve(ProjectedEuler(), uniform(10), up, y)[-1] != y).all()
    assert torch.equal(solve(ProjectedEuler(), uniform(10), down, y)[-1], y)


def test_one_unit_step_is_hes_unit_bit_for_bit():
    torch.manual_seed(0)
    y, f = torch.randn(2, 3, 4, 4).relu(), torch.randn(2, 3, 4, 4)
    step = solve(ProjectedEuler(), TimeGrid.uniform(1), lambda t, y: f, y)[-1]
    assert torch.equal(step, F.relu(f + y))


def test_it_has_no_inverse_and_no_adjoint_equation_here():
    assert not ProjectedEuler().reversible
    for method in (Reversible(), Adjoint()):
        with pytest.raises(InputError, match="Projected Euler"):
            method.check(ProjectedEuler(), uniform(4))
