"""Theorems about the residual fields."""

import pytest
import torch

from resode.errors import InputError
from resode.fields import Activated, Bottleneck, Double, PreactDouble, Preactivation, Triple
from resode.models.layouts import UnitSpec
from resode.models.units import ActivatedUnit, BottleneckUnit, PreactivationUnit, shortcut_a


def test_euler_with_h_1_is_a_preactivation_unit_bit_for_bit():
    torch.manual_seed(0)
    unit = PreactivationUnit(UnitSpec(8, 8, 8), shortcut_a)
    torch.manual_seed(0)
    field = Preactivation().build(8)
    for mine, theirs in zip(field.parameters(), unit.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    results = []
    for step in (unit, lambda y: y + 1.0 * field(y)):
        torch.manual_seed(1)
        y = torch.randn(4, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
        z = step(y)
        z.backward(torch.randn_like(z))
        results.append((z, y.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    for mine, theirs in zip(field.parameters(), unit.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    for mine, theirs in zip(field.buffers(), unit.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_without_its_first_norm_the_first_convolution_meets_the_state():
    field = Preactivation(first_norm=False).build(4).eval()
    assert "norm1.weight" not in field.state_dict()
    y = torch.randn(2, 4, 5, 5)
    expected = field.conv2(torch.relu(field.norm2(field.conv1(y))))
    assert torch.equal(field(y), expected)


def test_the_double_field_is_its_formula_with_and_without_its_end():
    y = torch.randn(2, 4, 5, 5)
    full = Double(bias=True).build(4).eval()
    bare = Double(bias=True, final_activation=False).build(4).eval()
    bare.load_state_dict(full.state_dict())
    expected = full.norm2(full.conv2(torch.relu(full.norm1(full.conv1(y)))))
    assert torch.equal(bare(y), expected)
    assert torch.equal(full(y), torch.relu(expected))


def test_the_preactivated_double_field_is_its_formula_and_keeps_the_state():
    y = torch.randn(2, 4, 5, 5)
    before = y.clone()
    field = PreactDouble(bias=True).build(4).eval()
    inner = torch.relu(field.norm1(field.conv1(torch.relu(y))))
    assert torch.equal(field(y), field.norm2(field.conv2(inner)))
    assert torch.equal(y, before)


@pytest.mark.parametrize("activation", ["relu", "softplus", "sigmoid"])
def test_a_state_that_can_only_grow_is_told(activation):
    field = Double(activation=activation)
    assert "can only grow; final_activation=false" in field.remark()
    assert (field.build(4)(torch.randn(2, 4, 5, 5)) >= 0).all()


@pytest.mark.parametrize(
    "field", [Double(final_activation=False), Double(activation="tanh"), Triple(final_activation=False)]
)
def test_a_state_that_can_also_fall_needs_no_remark(field):
    assert field.remark() is None
    f = field.build(4)(torch.randn(2, 4, 5, 5))
    assert f.min() < 0 < f.max()


def test_a_bottleneck_is_its_formula():
    field = Bottleneck(ratio=2, bias=True).build(8).eval()
    y = torch.randn(2, 8, 5, 5)
    f = field.conv1(torch.relu(field.norm1(y)))
    f = field.conv2(torch.relu(field.norm2(f)))
    assert torch.equal(field(y), field.conv3(torch.relu(field.norm3(f))))
    assert [tuple(c.weight.shape) for c in (field.conv1, field.conv2, field.conv3)] == [
        (4, 8, 1, 1),
        (4, 4, 3, 3),
        (8, 4, 1, 1),
    ]


def test_a_bottleneck_has_the_kernels_of_the_unit():
    torch.manual_seed(0)
    unit = BottleneckUnit(UnitSpec(8, 2, 8), shortcut_a)
    torch.manual_seed(0)
    field = Bottleneck().build(8)
    for name in ("conv1", "conv2", "conv3"):
        assert torch.equal(getattr(unit, name).weight, getattr(field, name).weight)


def test_a_triple_is_the_bottleneck_unit_without_its_sum_bit_for_bit():
    unit = BottleneckUnit(UnitSpec(8, 2, 8), shortcut_a).eval()
    field = Triple(final_activation=False).build(8).eval()
    field.load_state_dict({name.replace("bn", "norm"): t for name, t in unit.state_dict().items()})
    y = torch.randn(2, 8, 5, 5)
    assert torch.equal(torch.relu(y + field(y)), unit(y))
    assert (Triple().build(8)(y) >= 0).all()


def test_euler_with_h_1_is_an_activated_unit():
    unit = ActivatedUnit(UnitSpec(8, 8, 8), shortcut_a).double().eval()
    field = Activated().build(8).double().eval()
    field.load_state_dict({name.replace("bn", "norm"): t for name, t in unit.state_dict().items()})
    y = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(y + field(y), unit(y), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("field", "equation"),
    [
        (Preactivation(norm=None), "K2 relu(K1 relu(y))"),
        (Preactivation(norm=None, first_norm=False, bias=True), "K2 relu(K1 y + b1) + b2"),
        (Preactivation("group"), "K2 relu(N2(K1 relu(N1(y)))), N = GroupNorm(groups=None, eps=1e-05)"),
        (Double(norm=None, bias=True), "relu(K2 relu(K1 y + b1) + b2)"),
        (Double(norm=None, final_activation=False), "K2 relu(K1 y)"),
        (PreactDouble(norm=None, bias=True), "K2 relu(K1 relu(y) + b1) + b2"),
        (PreactDouble("group"), "N2(K2 relu(N1(K1 relu(y)))), N = GroupNorm(groups=None, eps=1e-05)"),
        (Bottleneck(norm=None, activation="tanh"), "K3 tanh(K2 tanh(K1 tanh(y)))"),
        (Triple(norm=None, bias=True), "relu(K3 relu(K2 relu(K1 y + b1) + b2) + b3)"),
        (Triple(norm=None, final_activation=False), "K3 relu(K2 relu(K1 y))"),
        (Activated(norm=None), "u - y + K2 relu(K1 u), u = relu(y)"),
    ],
)
def test_an_equation_says_what_the_options_leave_of_it(field, equation):
    assert field.equation == equation


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: Bottleneck(ratio=0), "Bottleneck: ratio 0; a positive integer is needed"),
        (lambda: Bottleneck(ratio=3).build(8), "Bottleneck: ratio 3 does not divide 8 channels"),
        (lambda: Triple(ratio=3).build(8), "Triple: ratio 3 does not divide 8 channels; take a divisor"),
        (lambda: Triple(final_activation=1), "Triple: final_activation 1; true or false is needed"),
        (lambda: Bottleneck(groups=4).build(8), "4 groups do not divide 2 channels"),
        (lambda: Preactivation(first_norm=1), "Preactivation: first_norm 1; true or false is needed"),
        (lambda: Double(final_activation=None), "Double: final_activation None; true or false is needed"),
    ],
)
def test_mistakes_are_one_line(mistake, message):
    with pytest.raises(InputError, match=message) as error:
        mistake()
    assert "\n" not in str(error.value)
