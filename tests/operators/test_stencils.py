"""Theorem 10: kernels are differential operators, exactly, and back."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from resode.errors import InputError
from resode.operators.stencils import PARTS, coefficients, kernels, stencils

ORDERS = list(itertools.product(range(3), repeat=2))
spacings = st.floats(0.1, 10)
seeds = st.integers(0, 1000)


def random_kernels(seed, dtype=torch.float64):
    return torch.randn(5, 4, 3, 3, generator=torch.manual_seed(seed), dtype=dtype)


@given(seeds, spacings)
def test_kernels_to_coefficients_to_kernels(seed, h):
    k = random_kernels(seed)
    torch.testing.assert_close(kernels(coefficients(k, h), h), k, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("h", [1.0, 0.5, 3.0])
def test_basis_stencils_are_exact_on_their_monomials(order, h):
    """(s_i s_j) y^k x^l at a pixel = the derivative of that order, for all k, l <= 2."""
    i, j = order
    s = stencils(h)
    kernel = s[i][:, None] * s[j][None, :]
    expected_coefficients = torch.zeros(3, 3, dtype=torch.float64)
    expected_coefficients[i, j] = 1
    torch.testing.assert_close(coefficients(kernel, h), expected_coefficients, rtol=0, atol=1e-13)
    y = (torch.arange(7, dtype=torch.float64) * h - 1.3)[:, None]
    x = (torch.arange(6, dtype=torch.float64) * h + 0.4)[None, :]
    for k in range(3):
        for m in range(3):
            derivative = math.perm(k, i) * math.perm(m, j) * y ** max(k - i, 0) * x ** max(m - j, 0)
            found = F.conv2d((y**k * x**m)[None, None], kernel[None, None])[0, 0]
            torch.testing.assert_close(found, derivative.expand(7, 6)[1:-1, 1:-1], rtol=1e-10, atol=1e-10)


def test_the_parts_are_the_nine_operators():
    assert sorted(order for orders in PARTS.values() for order in orders) == ORDERS


def test_known_kernels_have_known_coefficients():
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(coefficients(laplacian), expected)
    mean = torch.full((3, 3), 1 / 9, dtype=torch.float64)  # 1 + (dxx + dyy) / 3 + dxxyy / 9
    found = coefficients(mean)
    expected = torch.tensor([[1, 0, 1 / 3], [0, 0, 0], [1 / 3, 0, 1 / 9]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_dtype_and_gradients_are_kept():
    assert coefficients(random_kernels(0, torch.float32)).dtype == torch.float32
    k = random_kernels(0)[:1, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda k: kernels(coefficients(k), 0.5), (k,))


def test_kernels_of_another_size_are_refused():
    with pytest.raises(InputError, match="a kernel of size 5x5"):
        coefficients(torch.ones(2, 2, 5, 5))
    with pytest.raises(InputError, match="a positive distance is needed"):
        coefficients(torch.ones(3, 3), 0.0)
