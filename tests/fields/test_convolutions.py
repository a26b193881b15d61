"""Theorems about the convolution of the fields: its adjoint is exact, its boundary part of the operator."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from resode.errors import InputError
from resode.fields.activations import activation, activations
from resode.fields.convolutions import Convolution

BOUNDARIES = ["zero", "periodic"]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(BOUNDARIES),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([1, 3]),
)
def test_the_adjoint_is_exact(boundary, size, groups, widths, kernel):
    inputs, outputs = (groups * n for n in widths)
    conv = Convolution(inputs, outputs, kernel, groups=groups, boundary=boundary).double()
    y, z = (torch.randn(2, n, *size, dtype=torch.float64) for n in (inputs, outputs))
    there, back = torch.sum(conv(y) * z), torch.sum(y * conv.adjoint(z))
    assert abs(there - back).item() <= 1e-12 * y.norm().item() * z.norm().item() * conv.weight.norm().item()


@pytest.mark.parametrize("size", [(5, 6), (3, 3), (2, 2), (1, 4), (1, 1)])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_outside_the_image_is_zero_or_the_opposite_edge(boundary, size):
    conv = Convolution(2, 3, bias=True, boundary=boundary).double()
    torch.nn.init.normal_(conv.bias)
    y = torch.randn(2, 2, *size, dtype=torch.float64)
    height, width = size
    expected = conv.bias[:, None, None].expand(2, 3, height, width).clone()
    for i in range(height):
        for j in range(width):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    inside = 0 <= i + di < height and 0 <= j + dj < width
                    if inside or boundary == "periodic":
                        pixel = y[:, :, (i + di) % height, (j + dj) % width]
                        expected[:, :, i, j] += pixel @ conv.weight[:, :, di + 1, dj + 1].T
    torch.testing.assert_close(conv(y), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [(4, 5), (2, 1), (1, 1)])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_gradients_of_both_ways(boundary, size):
    conv = Convolution(4, 2, groups=2, bias=True, boundary=boundary).double()
    y, z = (torch.randn(2, n, *size, dtype=torch.float64, requires_grad=True) for n in (4, 2))
    assert torch.autograd.gradcheck(lambda y, *_: conv(y), (y, *conv.parameters()))
    assert torch.autograd.gradcheck(lambda z, _: conv.adjoint(z), (z, conv.weight))


def test_a_periodic_convolution_commutes_with_shifts():
    conv = Convolution(2, 2, boundary="periodic").double()
    y = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(y.roll((1, 2), (2, 3))), conv(y).roll((1, 2), (2, 3)))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_channels_last_stays_channels_last_there_and_back(boundary):
    conv = Convolution(4, 8, groups=2, boundary=boundary)
    y = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    z = conv.adjoint(conv(y))
    (gradient,) = torch.autograd.grad(z.square().sum(), y)
    for tensor in (conv(y), z, gradient):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_initial_weights_keep_the_variance_of_gradients():
    for groups in (1, 4):
        conv = Convolution(64, 128, groups=groups)
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128 / groups)), rel=0.02)


def test_on_the_meta_device_there_is_nothing_to_draw():
    with torch.device("meta"):
        conv = Convolution(4, 8, bias=True)
    assert conv(torch.empty(2, 4, 5, 6, device="meta")).shape == (2, 8, 5, 6)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="3 groups do not divide 8 channels; take a divisor"):
        Convolution(6, 8, groups=3)
    with pytest.raises(InputError, match="3 groups do not divide 8 channels; take a divisor"):
        Convolution(8, 6, groups=3)
    with pytest.raises(InputError, match="unknown boundary 'reflect'"):
        Convolution(8, 8, boundary="reflect")


@pytest.mark.parametrize("name", activations.names())
def test_what_the_table_says_of_an_activation(name):
    s = activation(name)
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(s(x).sum(), x)
    assert s.firmly_nonexpansive == bool((slope >= 0).all() and (slope <= 1).all())
    assert s.positive == bool((s(x) >= 0).all())


def test_an_unknown_activation_names_the_nearest():
    with pytest.raises(InputError, match="unknown activation 'rellu'; did you mean 'relu'"):
        activation("rellu")
    assert torch.equal(activation("relu")(torch.tensor([-1.0, 2.0])), F.relu(torch.tensor([-1.0, 2.0])))
