"""Theorem 2: reversible schemes recover the start, within the rounding that they state."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resode.grids import TimeGrid
from resode.integrators import FixedStep, Momentum, integrators, solve
from resode.integrators.base import carries
from tests.integrators.problems import fixed, inverted, there_and_back, usable

REVERSIBLE = fixed(where=lambda scheme: scheme.reversible)
STEPS = 100
GRID = TimeGrid.uniform(STEPS, 10.0)  # h = 0.1
SHAPE = (2, 4, 5, 6)


def convolution(width: int, norm: float, seed: int) -> tuple[Tensor, Tensor]:
    """A random 3x3 kernel and its bias; the convolution has the given norm."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(width, width, 3, 3, dtype=torch.float64, generator=generator)
    pixels = torch.eye(width * SHAPE[2] * SHAPE[3], dtype=torch.float64).reshape(-1, width, *SHAPE[2:])
    kernel *= norm / torch.linalg.matrix_norm(F.conv2d(pixels, kernel, padding=1).flatten(1), 2)
    return kernel, torch.randn(width, dtype=torch.float64, generator=generator)


def parabolic(width: int, norm: float, seed: int):
    """y -> -K^T tanh(K y + b): for y'' = f, and for the halves of a Hamiltonian system."""
    kernel, b = convolution(width, norm, seed)

    def f(y: Tensor) -> Tensor:
        k = kernel.to(y)
        return -F.conv_transpose2d(torch.tanh(F.conv2d(y, k, b.to(y), padding=1)), k, padding=1)

    return f


def antisymmetric(width: int, norm: float, seed: int):
    """y -> tanh((K - K^T) y + b), of which all eigenvalues are imaginary: for y' = f."""
    kernel, b = convolution(width, norm / 2, seed)

    def f(y: Tensor) -> Tensor:
        k = kernel.to(y)
        return torch.tanh(F.conv2d(y, k, b.to(y), padding=1) - F.conv_transpose2d(y, k, padding=1))

    return f


def lost(scheme: FixedStep, grid: TimeGrid, dtype: torch.dtype, norm: float = 1.0, seed: int = 0) -> float:
    """The largest error of what is recovered of a random state, h ||K|| = 0.1."""
    width = SHAPE[1] // len(scheme.parts)
    make = parabolic if scheme.second_order or len(scheme.parts) > 1 else antisymmetric
    f = {part: make(width, norm, seed + i) for i, part in enumerate(scheme.parts)}
    y = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    recovered = there_and_back(scheme, grid, lambda t, y, part="f": f[part](y), y)
    return float((recovered - y).abs().max())


@pytest.mark.parametrize("name", [n for n in REVERSIBLE if integrators.of(n).amplification(GRID) == 1])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_the_start_is_recovered_after_100_steps(name, dtype, limit):
    assert lost(integrators.of(name), GRID, dtype) <= limit


@pytest.mark.parametrize("g", [0.99, 0.995])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_momentum_near_1_recovers_it_too(g, dtype, limit):
    assert lost(Momentum(g), GRID, dtype) <= limit


@pytest.mark.parametrize("g", [0.95, 0.9, 0.8, 0.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", [0, 1])
def test_less_momentum_amplifies_rounding_as_it_states(g, dtype, seed):
    rounding = torch.finfo(dtype).eps * Momentum(g).amplification(GRID)
    assert Momentum(g).amplification(GRID) == pytest.approx(g**-STEPS)
    assert 1e-3 * rounding < lost(Momentum(g), GRID, dtype, seed=seed) < 100 * rounding


def test_an_amplification_beyond_all_floats_is_infinite():
    assert Momentum(0.1).amplification(TimeGrid.uniform(1000)) == float("inf")


steps = st.lists(st.floats(0.05, 0.2), min_size=1, max_size=12)


@pytest.mark.parametrize("name", REVERSIBLE)
@settings(deadline=None, max_examples=15)
@given(steps=steps, start=st.floats(-3, 3))
def test_every_step_is_inverted_on_any_grid(name, steps, start):
    """Not only the state: the whole carry before each step, as many tensors as there were."""
    grid = TimeGrid(tuple(start + sum(steps[:k]) for k in range(len(steps) + 1)))
    scheme = integrators.of(name)
    if not usable(scheme, grid):
        grid = TimeGrid.uniform(len(steps), start + sum(steps), start)
    f = lambda t, y, part="f": torch.sin(y + t + (part == "G"))  # noqa: E731 - another field each time
    y = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(1, 4, 1, 1)
    made = list(carries(scheme, grid, f, y, {}))
    for k in reversed(range(grid.steps)):
        recovered = inverted(scheme, grid, k, f, made[k + 1])
        torch.testing.assert_close(recovered, made[k], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", fixed(where=lambda scheme: not scheme.reversible))
def test_a_scheme_without_an_inverse_says_so(name):
    scheme, grid, y = integrators.of(name), TimeGrid.uniform(2), torch.ones(1, 2, 3, 3)
    with pytest.raises(ValueError, match="cannot be run backwards"):
        scheme.inverse(grid.step(1), lambda i, y: y, (y, y), scheme.coefficients(grid, 2))


@pytest.mark.parametrize("name", REVERSIBLE)
def test_gradients_flow_through_an_inverse(name):
    """What it recovers is a function of the carry that autograd knows."""
    scheme, grid = integrators.of(name), TimeGrid.uniform(2, 0.2)
    f = lambda t, y, part="f": torch.sin(y)  # noqa: E731
    y = torch.randn(1, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: there_and_back(scheme, grid, f, y), y)
    assert len(solve(scheme, grid, lambda t, y, part="f": y, y)) == 3
