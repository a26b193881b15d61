"""A twist built as a motion is read as that motion, and its velocity is what the layer computes."""

import math

import pytest
import torch
from torch import nn

import resode
from resode.analysis import Pattern, vector_fields
from resode.analysis.kernels import kernels_of
from resode.analysis.velocities import components
from resode.operators.stencils import kernels
from resode.operators.twist import TwistConv2d, coordinates


def twisted(tie="free", inputs=3, outputs=4, dtype=torch.float32, **options):
    """A twist of random numbers."""
    generator = torch.manual_seed(0)
    layer = TwistConv2d(inputs, outputs, 3, padding=1, bias=False, tie=tie, dtype=dtype, **options)
    with torch.no_grad():
        layer.twist.normal_(generator=generator)
    return layer


def built(d, r, s, q):
    """One channel, W = 0, and Wx and Wy of the first-order stencils of a dilation, a rotation, strains."""
    layer = TwistConv2d(1, 1, 3, padding=1, bias=False, tie="free", dtype=torch.float64)
    c = torch.zeros(2, 3, 3, dtype=torch.float64)
    c[0, 0, 1], c[0, 1, 0] = d + s, q + r  # Wx = (d + s) d/dx + (q + r) d/dy
    c[1, 0, 1], c[1, 1, 0] = q - r, d - s
    with torch.no_grad():
        layer.weight.zero_()
        layer.twist.copy_(torch.einsum("nthw,thw->n", layer.basis, kernels(c))[None, None])
    return layer


def read(layer):
    (field,) = vector_fields(nn.Sequential(layer))
    return field


MOTIONS = {"dilation": (1, 0, 0, 0), "rotation": (0, 1, 0, 0), "strain": (0, 0, 0.6, -0.8)}


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_pure_motion_is_read_as_that(motion, sign):
    field = read(built(*(0.7 * sign * number for number in MOTIONS[motion])))
    assert field.shares == {name: float(name == motion) for name in MOTIONS}
    assert field.share == pytest.approx(1)
    assert field.pattern.strength == pytest.approx(0.7)
    assert field.third_order == field.even == field.constant == 0


def test_the_field_of_a_rotation_turns_clockwise_as_an_image_is_drawn():
    u, v = Pattern(0, 1, 0, 0)(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert u.tolist() == [0, -1]  # below the middle it points to the left,
    assert v.tolist() == [1, 0]  # right of it downwards


@pytest.mark.parametrize("numbers", [*MOTIONS.values(), (0.3, -0.5, 0.2, 0.4)])
def test_the_layer_is_the_derivative_along_its_velocity(numbers):
    """X (Wx u) + Y (Wy u) = v . grad u within the error of the discretisation, which falls as h^2."""
    errors = []
    for size in (24, 48):
        h = 1 / size
        image = torch.empty(1, 1, size, size, dtype=torch.float64)
        x, y = coordinates(size, size, like=image)
        u = (torch.sin(3 * x + 1) * torch.exp(y) + x * y**2).expand(1, 1, size, size)
        ux = 3 * torch.cos(3 * x + 1) * torch.exp(y) + y**2
        uy = torch.sin(3 * x + 1) * torch.exp(y) + 2 * x * y
        layer = built(*numbers)
        found = layer(u)[0, 0].detach() / h  # a derivative by pixels is h times that by X
        vx, vy = Pattern(*numbers)(x, y)
        inner = slice(size // 6, -size // 6)
        errors.append((found - vx * ux - vy * uy)[inner, inner].abs().max().item())
    assert errors[0] < 0.02
    assert errors[1] < errors[0] / 3.5


def test_the_conformal_tie_has_no_strain():
    field = read(twisted("conformal"))
    assert field.strain == field.pattern.stretch == field.pattern.shear == 0
    assert field.dilation > 0
    assert field.rotation > 0
    assert field.even == 0
    assert field.third_order > 0


def test_the_saddle_tie_has_neither_dilation_nor_rotation():
    field = read(twisted("saddle"))
    assert field.dilation == field.rotation == field.pattern.dilation == field.pattern.rotation == 0
    assert field.strain > 0


def test_the_mixed_tie_has_no_velocity():
    field = read(twisted("mixed"))
    assert field.dilation == field.rotation == field.strain == field.third_order == 0
    assert field.even > 0
    assert field.pattern == Pattern(0, 0, 0, 0)
    assert field.share == 0
    assert set(field.shares.values()) == {0.0}


def test_a_new_twist_has_none_either():
    field = read(TwistConv2d(2, 2, 3))
    assert field.dilation == field.rotation == field.strain == field.share == 0
    assert field.constant > 0


def test_strengths_are_those_of_the_coefficients_and_the_pattern_explains_its_share():
    layer = twisted(inputs=5, outputs=6, dtype=torch.float64)
    field = read(layer)
    _, x, y = kernels_of(nn.Sequential(layer))
    a, b = x.coefficients, y.coefficients
    first = sum(c[..., k, m].square().sum() for c in (a, b) for k, m in ((0, 1), (1, 0))) / 6
    squares = field.dilation**2 + field.rotation**2 + field.strain**2
    assert 2 * squares == pytest.approx(first.item())  # |M|^2 = 2 (d^2 + r^2 + s^2 + q^2)
    every = (a.square() + b.square()).sum() / 6
    assert every.item() == pytest.approx(2 * squares + field.third_order**2 + field.even**2)
    assert field.pattern.strength**2 / squares == pytest.approx(field.share)
    values = torch.linalg.svdvals(components(x, y).flatten(0, 1))
    assert field.share == pytest.approx((values[0] ** 2 / values.square().sum()).item())
    assert 1 / 4 <= field.share <= 1


def test_pairs_that_share_a_pattern_are_explained_by_it():
    layer = built(0.2, 0.5, 0, 0.1)
    several = TwistConv2d(3, 2, 3, bias=False, tie="free", dtype=torch.float64)
    factors = torch.tensor([[1.0, -2, 0], [3, 1, -1]], dtype=torch.float64)
    with torch.no_grad():
        several.twist.copy_(factors[..., None] * layer.twist[0, 0])
    field = read(several)
    assert field.share == pytest.approx(1)
    length = math.sqrt(factors.square().sum() / 2)
    found = field.pattern
    assert (found.dilation, found.rotation, found.stretch, found.shear) == pytest.approx(
        (0.2 * length, 0.5 * length, 0, 0.1 * length), abs=1e-12
    )


def test_of_a_network_each_twisted_3x3_convolution_is_read_of_degree_1_alone():
    model = resode.twist(resode.create("he_resnet8"), [1, 2], tie="free", degree=2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, TwistConv2d):
                module.twist[..., 18:].normal_()  # the terms of degree 2
    fields = vector_fields(model)
    assert [(field.name, field.stage) for field in fields] == [
        (f"layer{stage}.0.conv{k}", stage) for stage in (1, 2) for k in (1, 2)
    ]
    assert all(field.dilation == field.rotation == field.strain == 0 for field in fields)
    assert vector_fields(resode.create("he_resnet8")) == ()
    assert vector_fields(nn.Sequential(TwistConv2d(2, 2, 1))) == ()
