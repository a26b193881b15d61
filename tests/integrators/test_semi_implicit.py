"""IMEX: L = B^T B is what the transform says it is, and the system is solved exactly."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resode.grids import TimeGrid
from resode.integrators import IMEX, solve
from resode.integrators.semi_implicit import implicit, symbol

SIZES = [(5, 4), (4, 5), (3, 3), (8, 7), (2, 6), (1, 1), (1, 4), (2, 2)]


def kernel(channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, 3, 3, dtype=torch.float64, generator=generator)


def matrix(kernel: Tensor, height: int, width: int) -> Tensor:
    """B of one channel as a dense matrix: pixel by pixel, indices modulo the image."""
    dense = torch.zeros(height, width, height, width, dtype=kernel.dtype)
    for i in range(height):
        for j in range(width):
            for p in (-1, 0, 1):
                for q in (-1, 0, 1):
                    dense[i, j, (i + p) % height, (j + q) % width] += kernel[p + 1, q + 1]
    return dense.reshape(height * width, -1)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("h", [0.1, 5.0])
def test_the_solve_is_that_of_the_dense_system(height, width, h):
    kernels, y = kernel(2), torch.randn(3, 2, height, width, dtype=torch.float64)
    solved = implicit(y, kernels, h)
    for channel in range(2):
        b = matrix(kernels[channel], height, width)
        system = torch.eye(height * width, dtype=torch.float64) + h * b.T @ b
        dense = torch.linalg.solve(system, y[:, channel].flatten(1).T).T
        torch.testing.assert_close(solved[:, channel].flatten(1), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(5, 4), (3, 3), (6, 7)])
def test_l_is_b_transposed_b(height, width):
    """The symbol applied by the transform, B^T B by convolutions, and its eigenvalues one by one."""
    kernels, y = kernel(2), torch.randn(1, 2, height, width, dtype=torch.float64)
    by_symbol = torch.fft.irfft2(symbol(kernels, (height, width)) * torch.fft.rfft2(y), s=(height, width))
    by = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="circular"), kernels[:, None], groups=2)
    btb = F.conv2d(F.pad(by, (1, 1, 1, 1), mode="circular"), kernels[:, None].flip(2, 3), groups=2)
    torch.testing.assert_close(by_symbol, btb, rtol=0, atol=1e-12)
    b = matrix(kernels[0], height, width)
    eigenvalues = torch.linalg.eigvalsh(b.T @ b)
    assert float(eigenvalues.min()) >= -1e-12
    assert float(symbol(kernels[:1], (height, width)).max()) == pytest.approx(
        float(eigenvalues.max()), rel=1e-10
    )


@pytest.mark.parametrize("variant", ["damped", "field"])
def test_a_step_solves_the_published_system(variant):
    """(I + h L) y_{n+1} = y_n + h f(y_n), and + h L y_n for the variant; L by dense matrices."""
    height, width, grid = 4, 5, TimeGrid((0.0, 0.3, 1.0))
    kernels = torch.stack((kernel(1, 1), kernel(1, 2)))
    y = torch.randn(2, 1, height, width, dtype=torch.float64)
    states = solve(IMEX(variant), grid, lambda t, y: torch.tanh(y) + t, y, {"B": kernels})
    for k, h in enumerate(grid.intervals):
        b = matrix(kernels[k, 0], height, width)
        hl = h * b.T @ b
        before, after = states[k].flatten(1), states[k + 1].flatten(1)
        right = before + h * (torch.tanh(before) + grid.nodes[k])
        if variant == "field":
            right = right + before @ hl
        torch.testing.assert_close(after + after @ hl, right, rtol=0, atol=1e-11)


@given(h=st.floats(0, 1e3), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_the_solve_never_enlarges(h, height, width, seed):
    y = torch.randn(1, 2, height, width, dtype=torch.float64)
    assert implicit(y, kernel(2, seed), h).norm() <= y.norm() * (1 + 1e-12)


def test_it_is_solved_in_float32_at_least():
    """bf16 goes there and back; under autocast nothing changes but what the field does."""
    torch.manual_seed(0)
    y, kernels = torch.randn(2, 4, 8, 8), IMEX().coefficients(TimeGrid.uniform(1), 4)["B"]
    rounded = y.bfloat16()
    exact = implicit(rounded.double(), kernels[0].bfloat16().double(), 0.5)
    solved = implicit(rounded, kernels[0].bfloat16(), 0.5)
    assert solved.dtype == torch.float32
    torch.testing.assert_close(solved.double(), exact, rtol=0, atol=1e-5)
    f = lambda t, y: torch.tanh(y)  # noqa: E731
    grid = TimeGrid.uniform(1)
    plain = solve(IMEX(), grid, f, y, {"B": kernels})[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = solve(IMEX(), grid, f, y, {"B": kernels})[-1]
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


def test_b_begins_as_a_depthwise_convolution_does():
    torch.manual_seed(0)
    b = IMEX().coefficients(TimeGrid.uniform(3), 64)["B"]
    assert b.shape == (3, 64, 3, 3)
    usual = torch.nn.Conv2d(64, 64, 3, groups=64).weight.detach()
    assert float(b.abs().max()) <= 1 / 3
    assert float(b.std()) == pytest.approx(float(usual.std()), rel=0.1)


def test_one_step_reaches_the_whole_image():
    """Unlike a 3x3 convolution: a pixel that changes moves all others."""
    y = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    y[0, 0, 4, 4] = 1
    assert (implicit(y, kernel(1), 1.0).abs() > 1e-9).all()
