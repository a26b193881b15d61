"""Theorems about residual units."""

import pytest
import torch
from torch import nn

from resode.models.layouts import UnitSpec
from resode.models.units import (
    BasicUnit,
    BottleneckUnit,
    Convolution,
    PreactivationUnit,
    Subsample,
    Unit,
    shortcut_a,
    shortcut_b,
    zero_branches,
)

UNITS = [BasicUnit, BottleneckUnit, PreactivationUnit]


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 32), (3, 8), (5, 5)])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_shortcut_a_subsamples_by_two_and_pads_channels_on_both_sides(inputs, outputs, size):
    y = torch.randn(2, inputs, *size)
    height, width = (size[0] + 1) // 2, (size[1] + 1) // 2
    expected = torch.zeros(2, outputs, height, width)
    before = (outputs - inputs) // 2
    for n in range(2):
        for c in range(inputs):
            for i in range(height):
                for j in range(width):
                    expected[n, before + c, i, j] = y[n, c, 2 * i, 2 * j]
    torch.testing.assert_close(Subsample(inputs, outputs, 2)(y), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shortcut", [shortcut_a, shortcut_b])
def test_a_shortcut_that_keeps_the_shape_is_the_identity(shortcut):
    assert isinstance(shortcut(UnitSpec(8, 8, 8)), nn.Identity)


def test_shortcut_b_is_a_strided_1x1_convolution_with_its_norm():
    convolution, norm = shortcut_b(UnitSpec(4, 6, 6, (2, 1)))
    y = torch.randn(3, 4, 7, 7)
    expected = norm(torch.einsum("oc,nchw->nohw", convolution.weight[:, :, 0, 0], y[:, :, ::2, ::2]))
    torch.testing.assert_close(norm(convolution(y)), expected)


@pytest.mark.parametrize("strides", [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shortcut", [shortcut_a, shortcut_b])
def test_branch_and_shortcut_agree_on_odd_sizes(unit, shortcut, strides):
    stride = strides[0] * strides[1]
    y = unit(UnitSpec(4, 5, 6, strides), shortcut)(torch.randn(2, 4, 9, 5))
    assert y.shape == (2, 6, -(-9 // stride), -(-5 // stride))


def test_a_preactivation_unit_without_convolutions_is_the_identity():
    unit = PreactivationUnit(UnitSpec(4, 4, 4), shortcut_a)
    for convolution in (unit.conv1, unit.conv2):
        nn.init.zeros_(convolution.weight)
    y = torch.randn(2, 4, 5, 5)
    assert torch.equal(unit(y), y)


def test_the_units_are_the_formulas_of_the_papers():
    y = torch.randn(4, 6, 8, 8)
    spec = UnitSpec(6, 6, 6)
    basic, bottleneck, pre = (unit(spec, shortcut_a) for unit in UNITS)
    k1, b1, k2, b2 = basic.conv1, basic.bn1, basic.conv2, basic.bn2
    torch.testing.assert_close(basic(y), torch.relu(y + b2(k2(torch.relu(b1(k1(y)))))))
    k1, b1, k2, b2 = pre.conv1, pre.bn1, pre.conv2, pre.bn2
    torch.testing.assert_close(pre(y), y + k2(torch.relu(b2(k1(torch.relu(b1(y)))))))
    k1, b1, k2, b2 = bottleneck.conv1, bottleneck.bn1, bottleneck.conv2, bottleneck.bn2
    inner = torch.relu(b2(k2(torch.relu(b1(k1(y))))))
    torch.testing.assert_close(bottleneck(y), torch.relu(y + bottleneck.bn3(bottleneck.conv3(inner))))


@pytest.mark.parametrize("unit", UNITS)
def test_a_zero_branch_is_the_shortcut_and_still_learns(unit: type[Unit]):
    network = nn.Sequential(unit(UnitSpec(4, 4, 4), shortcut_a))
    zero_branches(network)
    y = torch.rand(2, 4, 5, 5)
    assert torch.equal(network(y), y)
    (network(y) * torch.randn_like(y)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize(("inputs", "outputs", "kernel"), [(64, 128, 3), (128, 512, 1)])
def test_convolutions_start_with_kaimings_variance_by_fan_out(inputs, outputs, kernel):
    torch.manual_seed(0)
    weight = Convolution(inputs, outputs, kernel).weight
    assert weight.var().item() == pytest.approx(2 / (kernel**2 * outputs), rel=0.05)
    assert abs(weight.mean().item()) < 0.05 * weight.std().item()
