"""Theorem 8: the matrix of the antisymmetric field is antisymmetric, whatever an optimizer does."""

import pytest
import torch

from resode.errors import InputError
from resode.fields import Antisymmetric
from resode.fields.convolutions import convolve

SHAPE = (4, 3, 5)


def matrix(module):
    """The matrix A of the linear map inside s."""
    basis = torch.eye(60, dtype=torch.float64).unflatten(1, SHAPE)
    kernel = module.kernel().detach()
    return convolve(basis, kernel, None, module.conv.boundary, module.conv.groups).flatten(1).T


def antisymmetric(**options):
    torch.manual_seed(0)
    return Antisymmetric(**options).build(4).double()


@pytest.mark.parametrize("boundary", ["zero", "periodic"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_it_stays_antisymmetric_under_training(boundary, groups, optimizer):
    module = antisymmetric(boundary=boundary, groups=groups)
    steps = optimizer(module.parameters(), lr=0.1, weight_decay=1e-3)
    y = torch.randn(3, *SHAPE, dtype=torch.float64)
    start = module.conv.weight.detach().clone()
    for _ in range(4):
        A = matrix(module)
        assert A.norm() > 0.1
        assert torch.linalg.matrix_norm(A + A.T, 2) == 0
        steps.zero_grad()
        (module(y) - y).square().mean().backward()
        steps.step()
    assert not torch.equal(module.conv.weight, start)


@pytest.mark.parametrize("boundary", ["zero", "periodic"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("gamma", [0.1, 3])
def test_gamma_shifts_the_real_parts(boundary, groups, gamma):
    free = matrix(antisymmetric(boundary=boundary, groups=groups))
    damped = matrix(antisymmetric(boundary=boundary, groups=groups, gamma=gamma))
    assert torch.equal(damped, free - gamma * torch.eye(60, dtype=torch.float64))
    real = torch.linalg.eigvals(damped).real
    torch.testing.assert_close(real, torch.full_like(real, -gamma), rtol=0, atol=1e-12)


def test_the_field_is_its_formula():
    module = antisymmetric(norm="tv", gamma=0.5, activation="silu")
    torch.nn.init.normal_(module.conv.bias)
    y = torch.randn(2, *SHAPE, dtype=torch.float64)
    z = (y.flatten(1) @ matrix(module).T).unflatten(1, SHAPE) + module.conv.bias[:, None, None]
    torch.testing.assert_close(module(y), torch.nn.functional.silu(module.norm(z)))
    plain = Antisymmetric(gamma=0.5, activation="identity", bias=False).build(4).double()
    plain.conv.weight = module.conv.weight
    expected = module.conv(y) - module.conv.bias[:, None, None] - module.conv.adjoint(y) - 0.5 * y
    torch.testing.assert_close(plain(y), expected)


def test_a_linear_solution_keeps_its_length():
    module = antisymmetric(activation="identity", bias=False)
    y = torch.randn(60, dtype=torch.float64)
    z = torch.linalg.matrix_exp(5 * matrix(module)) @ y
    assert z.norm().item() == pytest.approx(y.norm().item(), rel=1e-12)


def test_the_equation_names_gamma():
    assert Antisymmetric(gamma=0.1).equation == "tanh((K - K^T - 0.1 I) y + b)"
    assert Antisymmetric(bias=False).equation == "tanh((K - K^T) y)"


@pytest.mark.parametrize("gamma", [-1, float("nan"), float("inf"), True, "0.1"])
def test_a_gamma_that_cannot_be(gamma):
    with pytest.raises(InputError, match=r"gamma .*; a number of at least 0 is needed"):
        Antisymmetric(gamma=gamma)
