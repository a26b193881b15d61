"""Theorem 6: the pendulum for T = 1000; symplectic schemes keep its energy."""

import pytest
import torch

from resode.grids import TimeGrid
from resode.integrators import Euler, FixedStep, StormerVerlet, SymplecticEuler, solve

END = 1000.0


def energy_errors(scheme: FixedStep, h: float, end: float = END) -> torch.Tensor:
    """|H(Y, Z) - H_0| at all nodes of Y' = Z, Z' = -sin Y, H = Z^2/2 - cos Y, Y_0 = 1.2, Z_0 = 0.3."""
    grid = TimeGrid.uniform(round(end / h), end)
    y = torch.tensor([[1.2, 0.3]], dtype=torch.float64)

    def f(t: float, y: torch.Tensor, part: str = "f") -> torch.Tensor:
        if part == "f":
            return torch.stack((y[:, 1], -torch.sin(y[:, 0])), 1)
        return y if part == "F" else torch.sin(y)

    states = torch.cat(solve(scheme, grid, f, y))
    energy = states[:, 1] ** 2 / 2 - torch.cos(states[:, 0])
    return (energy - energy[0]).abs()


@pytest.mark.parametrize(
    ("scheme", "ratio", "margin"), [(StormerVerlet(), 4, 0.1), (SymplecticEuler(), 2, 0.15)]
)
def test_the_energy_error_is_bounded_and_falls_at_the_order(scheme, ratio, margin):
    errors = {h: energy_errors(scheme, h) for h in (0.2, 0.1)}
    for error in errors.values():
        tenth = len(error) // 10
        assert error[-tenth:].max() <= 1.05 * error[:tenth].max()
    assert float(errors[0.2].max() / errors[0.1].max()) == pytest.approx(ratio, abs=margin)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "ratio", "margin"), [(StormerVerlet(), 4, 0.1), (SymplecticEuler(), 2, 0.15)]
)
def test_it_falls_so_again_at_half_the_step(scheme, ratio, margin):
    coarse, fine = (energy_errors(scheme, h).max() for h in (0.1, 0.05))
    assert float(coarse / fine) == pytest.approx(ratio, abs=margin)


def test_euler_does_not_keep_it():
    """The negative control: the energy error of forward Euler grows all the way."""
    error = energy_errors(Euler(), 0.1, end=50.0)
    tenth = len(error) // 10
    assert error[-tenth:].max() > 5 * error[:tenth].max()
