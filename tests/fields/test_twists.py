"""Theorems about twisted fields: the adjoint is exact, what was symmetric stays so, bounds are bounds."""

import copy

import pytest
import torch
import yaml
from torch import nn
from torch.autograd.functional import jacobian

from resode import cost
from resode.errors import InputError
from resode.fields import Twist, TwistedConvolution, fields
from resode.fields.convolutions import Convolution, convolve
from resode.fields.twists import twist_of
from resode.operators.ties import TIES
from resode.operators.twist import COORDINATES

BOUNDARIES = ["zero", "periodic"]
TIED = [(tie, degree) for tie in TIES for degree in (1, 2) if (tie, degree) != ("mixed", 2)]
tied = pytest.mark.parametrize(("tie", "degree"), TIED)
boundaries = pytest.mark.parametrize("boundary", BOUNDARIES)
SHAPE = (4, 3, 5)


def twisted(inputs=4, outputs=4, *, tie="conformal", degree=1, coordinates="centred", form="auto", **options):
    """A float64 twist with random kernels."""
    torch.manual_seed(0)
    made = TwistedConvolution(inputs, outputs, Twist(tie, degree, coordinates, form), **options).double()
    nn.init.normal_(made.twist, std=0.3)
    return made


def layer(name, width=4, **options):
    """A twisted field, in float64, with no parameter at a special value."""
    torch.manual_seed(0)
    module = fields.build(name, **{"twist": "conformal", "activation": "tanh", **options}).build(width)
    for parameter in module.double().parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return module


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(1))


def dense(linear, shape=SHAPE):
    """The matrix of a linear map of images."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).unflatten(1, shape)
    return linear(basis).detach().flatten(1).T


# ---------------------------------------------------------------- the operator and its adjoint


@tied
@boundaries
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [(5, 6), (2, 3), (1, 1)])
def test_the_adjoint_is_exact(tie, degree, boundary, groups, size):
    for coordinates in COORDINATES:
        conv = twisted(
            2, 6, tie=tie, degree=degree, coordinates=coordinates, groups=groups, boundary=boundary
        )
        y, z = image(2, 2, *size), image(2, 6, *size)
        there, back = torch.sum(conv(y) * z), torch.sum(y * conv.adjoint(z))
        assert abs(there - back).item() <= 1e-12 * y.norm().item() * z.norm().item()
        bias = image(2)
        expected = -(conv.adjoint(z) + bias[:, None, None])
        torch.testing.assert_close(conv.minus_adjoint(z, bias), expected, rtol=1e-13, atol=1e-13)


@tied
@boundaries
def test_it_is_its_formula(tie, degree, boundary):
    conv = twisted(tie=tie, degree=degree, boundary=boundary, groups=2, bias=True, coordinates="per-axis")
    nn.init.normal_(conv.bias)
    height, width = 4, 7
    x = torch.tensor([(2 * j + 1 - width) / (2 * width) for j in range(width)], dtype=torch.float64)
    y = torch.tensor([(2 * i + 1 - height) / (2 * height) for i in range(height)], dtype=torch.float64)
    u = image(2, 4, height, width)
    expected = convolve(u, conv.weight, conv.bias, boundary, 2)
    for (p, q), w in zip(conv.terms, conv.kernels(), strict=True):
        expected = expected + x**p * y[:, None] ** q * convolve(u, w, None, boundary, 2)
    for form in ("separate", "stacked", "fused"):
        conv.form = form
        torch.testing.assert_close(conv(u), expected, rtol=1e-12, atol=1e-12)


@boundaries
@pytest.mark.parametrize("groups", [1, 2])
def test_channels_last_stays_channels_last_there_and_back(boundary, groups):
    conv = twisted(4, 8, groups=groups, boundary=boundary).to(memory_format=torch.channels_last)
    y = image(2, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    z = conv.adjoint(conv(y))
    (gradient,) = torch.autograd.grad(z.square().sum(), y)
    for tensor in (conv(y), z, gradient):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="3 groups do not divide 8 channels; take a divisor"):
        TwistedConvolution(6, 8, Twist(), groups=3)
    with pytest.raises(InputError, match="unknown boundary 'reflect'"):
        TwistedConvolution(8, 8, Twist(), boundary="reflect")
    with pytest.raises(InputError, match="a twisted K has no kernel"):
        layer("antisymmetric").kernel()


# ---------------------------------------------------------------- fields


@pytest.mark.parametrize("name", fields.names())
@boundaries
def test_a_twist_of_zero_is_the_plain_field(name, boundary):
    """Within rounding; bit for bit in separate form where the field has no adjoint."""
    options = {"boundary": boundary, "bias": True, "norm": None}
    for form in ("auto", "separate"):
        modules = []
        for twist in (None, Twist(form=form)):
            torch.manual_seed(0)
            modules.append(fields.build(name, twist=twist, **options).build(4).double())
        plain, made = modules
        added = dict(made.named_parameters()).keys() - dict(plain.named_parameters())
        assert added
        assert all(n.endswith("twist") and not made.get_parameter(n).any() for n in added)
        assert all(torch.equal(t, made.state_dict()[n]) for n, t in plain.state_dict().items())
        y = image(2, *SHAPE)
        torch.testing.assert_close(made(y), plain(y), rtol=1e-12, atol=1e-12)
        if form == "separate" and name in ("preactivation", "double", "bottleneck"):
            assert torch.equal(made(y), plain(y))


@pytest.mark.parametrize("name", fields.names())
def test_the_twist_is_learned_from_zero_on(name):
    module = fields.build(name, twist="conformal", norm=None, activation="tanh").build(4).double()
    module(image(2, *SHAPE)).square().sum().backward()
    assert all(p.grad.abs().max() > 1e-9 for n, p in module.named_parameters() if n.endswith("twist"))


@tied
@boundaries
@pytest.mark.parametrize(("name", "sign"), [("parabolic", -1), ("hamiltonian", 1)])
def test_a_symmetric_field_stays_symmetric_and_within_its_bound(name, sign, tie, degree, boundary):
    module = layer(name, twist={"tie": tie, "degree": degree}, norm=None, boundary=boundary, groups=2)
    J = sign * jacobian(module, image(1, *SHAPE)).reshape(60, 60)
    bound, _ = module.spectrum(3, 5)
    torch.testing.assert_close(J, J.T, rtol=0, atol=1e-13 * bound)
    eigenvalues = torch.linalg.eigvalsh(J)
    assert eigenvalues.min() >= -1e-12 * bound
    assert 1e-3 < eigenvalues.max() <= bound * (1 + 1e-12)


@tied
@boundaries
@pytest.mark.parametrize("gamma", [0, 0.5])
def test_an_antisymmetric_field_stays_antisymmetric_under_training(tie, degree, boundary, gamma):
    module = layer("antisymmetric", twist={"tie": tie, "degree": degree}, norm=None, boundary=boundary,
                   gamma=gamma, groups=2, activation="identity")  # fmt: skip
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    y = image(3, *SHAPE)
    for _ in range(3):
        A = dense(lambda u: module(u) - module(0 * u))
        shift = 2 * gamma * torch.eye(60, dtype=torch.float64)
        torch.testing.assert_close(A + A.T, -shift, rtol=0, atol=1e-13)
        decay, rotation = module.spectrum(3, 5)
        assert decay == gamma
        largest = torch.linalg.matrix_norm(A + shift / 2, 2).item()
        assert 0.01 < largest <= rotation * (1 + 1e-12)
        optimizer.zero_grad()
        (module(y) - y).square().mean().backward()
        optimizer.step()


@tied
@boundaries
@pytest.mark.parametrize("groups", [1, 2])
def test_the_bound_is_one_and_that_of_the_kernel_where_the_twist_is_zero(tie, degree, boundary, groups):
    for coordinates in COORDINATES:
        conv = twisted(tie=tie, degree=degree, coordinates=coordinates, groups=groups, boundary=boundary)
        norm = torch.linalg.matrix_norm(dense(conv), 2).item()
        bound = conv.bound(3, 5)
        assert norm <= bound * (1 + 1e-12)
        plain = Convolution(4, 4, groups=groups, boundary=boundary).double()
        plain.weight = conv.weight
        assert plain.bound(3, 5) < bound
        nn.init.zeros_(conv.twist)
        assert conv.bound(3, 5) == plain.bound(3, 5)
        assert conv.antisymmetric_bound(3, 5) == plain.antisymmetric_bound(3, 5)


@pytest.mark.parametrize("name", ["parabolic", "hamiltonian", "antisymmetric"])
def test_with_a_norm_nothing_is_claimed(name):
    assert layer(name, norm="tv").spectrum(3, 5) is None
    assert layer(name, norm=None, activation="gelu").spectrum(3, 5) is None


# ---------------------------------------------------------------- what it costs, how it is written


@tied
@pytest.mark.parametrize(
    ("name", "convolutions"), [("parabolic", 2), ("preactivation", 2), ("antisymmetric", 2)]
)
def test_a_twist_costs_a_convolution_for_each_monomial(name, convolutions, tie, degree):
    width, shape = 8, (8, 16, 16)
    module = fields.build(name, norm=None, groups=2, twist={"tie": tie, "degree": degree}).build(width)
    conv = next(m for m in module.modules() if isinstance(m, TwistedConvolution))
    plain = 9 * width * (width // 2) * 16 * 16
    assert cost.multiply_adds(module, shape) == convolutions * (1 + len(conv.terms)) * plain


@pytest.mark.parametrize("name", fields.names())
@pytest.mark.parametrize(
    ("given", "described"),
    [
        ("conformal", "conformal"),
        ({}, "conformal"),
        (Twist("free", 2), {"tie": "free", "degree": 2}),
        ({"coordinates": "per-axis", "tie": "odd"}, {"tie": "odd", "coordinates": "per-axis"}),
        (None, None),
    ],
)
def test_options_and_tensors_there_and_back(name, given, described):
    field = fields.build(name, twist=given)
    data = fields.describe(field)
    assert (None if isinstance(data, str) else data.get("twist")) == described
    again = fields.of(yaml.safe_load(yaml.safe_dump(data)))
    assert again == field
    assert hash(again) == hash(field)
    assert ("W + " in field.equation) == (given is not None)
    module, other = (
        layer(name, twist=given, activation=field.activation).eval(),
        again.build(4).double().eval(),
    )
    other.load_state_dict(module.state_dict())
    y = image(1, *SHAPE)
    assert torch.equal(other(y), module(y))
    assert torch.equal(copy.deepcopy(module)(y), module(y))


def test_the_names_of_the_parameters():
    names = [n for n, _ in fields.build("parabolic", twist="conformal").build(4).named_parameters()]
    assert names == ["bias", "conv.weight", "conv.bias", "conv.twist", "norm.weight", "norm.bias"]
    assert set(TwistedConvolution(4, 4, Twist()).state_dict()) == {"weight", "twist"}


@pytest.mark.parametrize("name", fields.names())
@pytest.mark.parametrize(
    ("twist", "message"),
    [
        ("conformul", "unknown tie 'conformul'; did you mean 'conformal'"),
        ({"tie": "free", "degre": 2}, "twist has no option 'degre'; did you mean 'degree'"),
        ({"degree": 0}, "degree 0; a positive integer is needed"),
        ({"tie": "mixed", "degree": 2}, "the mixed tie is of degree 1"),
        ({"form": "fast"}, "unknown form 'fast'"),
        (True, r"twist True: expected a tie \(free, .*, or null for none"),
    ],
)
def test_mistakes_are_one_line(name, twist, message):
    with pytest.raises(InputError, match=message) as error:
        fields.build(name, twist=twist)
    assert "\n" not in str(error.value)


def test_a_specification_is_written_as_its_operator():
    assert str(Twist()) == "W + X Wx + Y Wy (conformal)"
    assert str(twist_of({"tie": "free", "degree": 2})) == "W + sum X^p Y^q W_pq, p + q <= 2 (free)"
    field = fields.build("antisymmetric", twist="conformal")
    assert field.equation == "tanh((K - K^T) y + b), K = W + X Wx + Y Wy (conformal)"
