"""Theorem 7: the parabolic field contracts, where it is claimed and nowhere else."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from resode.fields import Parabolic
from resode.fields.activations import activations
from resode.operators.spectra import norm_bound

FIRMLY_NONEXPANSIVE = [name for name in activations.names() if activations.build(name).firmly_nonexpansive]
SHAPE = (3, 4, 5)
SIZE = SHAPE[1:]


def parabolic(seed=0, width=3, **options):
    torch.manual_seed(seed)
    module = Parabolic(**options).build(width).double()
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return module


def dense(linear, shape=SHAPE):
    """The matrix of a linear map of images."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).unflatten(1, shape)
    return linear(basis).detach().flatten(1).T


def test_it_is_its_formula_and_the_adjoint_has_the_same_weights():
    module = parabolic(norm=None, activation="relu", groups=1)
    y = torch.randn(2, *SHAPE, dtype=torch.float64)
    K = dense(lambda y: nn.functional.conv2d(y, module.conv.weight, padding=1))
    b1, b2 = (b[:, None, None].expand(SHAPE).flatten() for b in (module.conv.bias, module.bias))
    expected = -(torch.relu(y.flatten(1) @ K.T + b1) @ K + b2)
    torch.testing.assert_close(module(y).flatten(1), expected)
    assert [name for name, _ in module.named_parameters()] == ["bias", "conv.weight", "conv.bias"]


@pytest.mark.parametrize("norm", ["tv", "group", {"name": "tv", "scale": False}])
def test_the_norm_stands_between_the_convolution_and_the_activation(norm):
    module = parabolic(norm=norm)
    y = torch.randn(2, *SHAPE, dtype=torch.float64)
    expected = -(module.conv.adjoint(torch.relu(module.norm(module.conv(y)))) + module.bias[:, None, None])
    torch.testing.assert_close(module(y), expected)


@pytest.mark.parametrize("boundary", ["zero", "periodic"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("activation", FIRMLY_NONEXPANSIVE)
def test_the_jacobian_is_symmetric_with_eigenvalues_within_the_bound(activation, boundary, groups):
    module = parabolic(norm=None, activation=activation, boundary=boundary, groups=groups)
    y = torch.randn(1, *SHAPE, dtype=torch.float64)
    J = jacobian(module, y).reshape(60, 60)
    bound = module.spectral_bound(*SIZE)
    torch.testing.assert_close(J, J.T, rtol=0, atol=1e-13 * bound)
    eigenvalues = torch.linalg.eigvalsh(J)
    assert -bound * (1 + 1e-12) <= eigenvalues.min()
    assert eigenvalues.max() <= 1e-12 * bound


@pytest.mark.parametrize("boundary", ["zero", "periodic"])
@pytest.mark.parametrize("activation", FIRMLY_NONEXPANSIVE)
def test_euler_never_drives_trajectories_apart(activation, boundary):
    module = parabolic(norm=None, activation=activation, boundary=boundary)
    h = 2 / module.spectral_bound(*SIZE)
    y, z = 3 * torch.randn(2, 40, *SHAPE, dtype=torch.float64)
    top = torch.linalg.svd(dense(module.conv) - dense(lambda y: module.conv(0 * y))).Vh[0].unflatten(0, SHAPE)
    z[:20] = y[:20] + top  # the worst direction, and any other
    with torch.no_grad():
        for _ in range(20):
            before = (y - z).flatten(1).norm(dim=1)
            y, z = y + h * module(y), z + h * module(z)
            assert ((y - z).flatten(1).norm(dim=1) <= before * (1 + 1e-12)).all()


@pytest.mark.parametrize("boundary", ["zero", "periodic"])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_beyond_the_bound_the_top_singular_pair_grows(activation, boundary):
    module = parabolic(norm=None, activation=activation, boundary=boundary)
    nn.init.constant_(module.conv.bias, 100.0)  # s has slope 1 everywhere
    K = dense(lambda y: module.conv(y) - module.conv(0 * y))
    _, s, Vh = torch.linalg.svd(K)
    h = 2.5 / s[0].item() ** 2
    assert norm_bound(module.conv.weight, SIZE, boundary) >= s[0].item() * (1 - 1e-12)
    y = torch.randn(1, *SHAPE, dtype=torch.float64)
    z = y + Vh[0].unflatten(0, SHAPE)
    with torch.no_grad():
        y, z = y + h * module(y), z + h * module(z)
    assert (y - z).norm().item() == pytest.approx(1.5)


@pytest.mark.parametrize("norm", ["tv", {"name": "tv", "scale": False}, "group", "batch"])
def test_with_a_norm_nothing_is_claimed_and_rightly_so(norm):
    module = parabolic(norm=norm, activation="tanh")
    assert module.spectral_bound(*SIZE) is None
    y = torch.randn(1, *SHAPE, dtype=torch.float64)
    J = jacobian(module, y).reshape(60, 60)
    assert (J - J.T).norm() > 0.01 * J.norm()
    eigenvalues, vectors = torch.linalg.eigh((J + J.T) / 2)
    assert eigenvalues[-1] > 0  # so that a short step of Euler, along the last vector, drives apart
    h = 1e-3
    assert h * norm_bound(module.conv.weight, SIZE, "zero") ** 2 < 0.1
    z = y + 1e-4 * vectors[:, -1].reshape(y.shape)
    with torch.no_grad():
        after = (y + h * module(y) - z - h * module(z)).norm()
    assert after > (y - z).norm() * (1 + 1e-7)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_nothing_is_claimed_for_an_activation_that_falls(activation):
    module = parabolic(norm=None, activation=activation)
    assert module.spectral_bound(*SIZE) is None
    eigenvalues = torch.linalg.eigvalsh(
        jacobian(module, 3 * torch.randn(1, *SHAPE, dtype=torch.float64)).reshape(60, 60)
    )
    assert eigenvalues.max() > 1e-3


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"bias": False}, 9 * 32**2 + 64),
        ({"norm": {"name": "tv", "scale": False}}, 9 * 32**2 + 3 * 32),
        ({"norm": None, "bias": False, "groups": 4}, 9 * 32**2 // 4),
    ],
)
def test_its_parameters(options, parameters):
    assert sum(p.numel() for p in Parabolic(**options).build(32).parameters()) == parameters


@pytest.mark.parametrize(
    ("field", "equation"),
    [
        (Parabolic(norm=None), "-(K^T relu(K y + b1) + b2)"),
        (Parabolic(norm=None, bias=False, activation="tanh"), "-K^T tanh(K y)"),
        (Parabolic(), "-(K^T relu(N(K y + b1)) + b2), N = TvNorm(eps=0.001, scale=True)"),
    ],
)
def test_an_equation_says_what_the_options_leave_of_it(field, equation):
    assert field.equation == equation
