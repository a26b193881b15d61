"""The Hamiltonian field is the gradient of an energy."""

import pytest
import torch
import torch.nn.functional as F

from resode.fields import Hamiltonian, Parabolic

ENERGIES = {
    "identity": lambda z: z**2 / 2,
    "relu": lambda z: F.relu(z) ** 2 / 2,
    "tanh": lambda z: torch.log(torch.cosh(z)),
    "sigmoid": F.softplus,
}


@pytest.mark.parametrize("boundary", ["zero", "periodic"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("activation", list(ENERGIES))
def test_without_a_norm_it_is_the_gradient_of_an_energy(activation, groups, boundary):
    module = Hamiltonian(norm=None, activation=activation, groups=groups, boundary=boundary).build(4).double()
    torch.nn.init.normal_(module.conv.bias)
    z = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    energy = ENERGIES[activation](module.conv(z)).sum()
    torch.testing.assert_close(module(z), torch.autograd.grad(energy, z)[0])


@pytest.mark.parametrize("norm", ["tv", None])
def test_it_is_the_parabolic_field_with_the_other_sign(norm):
    torch.manual_seed(0)
    module = Hamiltonian(norm=norm).build(4).double()
    torch.manual_seed(0)
    parabolic = Parabolic(norm=norm).build(4).double()
    z = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(module(z), -parabolic(z))


def test_the_norm_stands_between_the_convolution_and_the_activation():
    module = Hamiltonian(norm="group").build(4).double()
    z = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    expected = module.conv.adjoint(torch.relu(module.norm(module.conv(z))))
    torch.testing.assert_close(module(z), expected)
    assert "conv.bias" in module.state_dict()
    assert "conv.bias" not in Hamiltonian(bias=False).build(4).state_dict()


def test_the_equation():
    assert Hamiltonian(norm=None, activation="tanh").equation == "K^T tanh(K y + b)"
    assert Hamiltonian(norm=None, bias=False).equation == "K^T relu(K y)"
