"""A twist by its generators in operations of torch is the twist; a registered kernel replaces them."""

import copy

import pytest
import torch
from torch import nn

from resode import acceleration, cost
from resode.operators.ties import TIES
from resode.operators.twist import TwistConv2d

TIED = [(tie, degree) for tie in TIES for degree in ((1,) if tie == "mixed" else (1, 2))]


def forms(**options):
    """The same twist by its generators and by convolutions, in double precision: no kernel supports that."""
    torch.manual_seed(0)
    twist = TwistConv2d(4, 6, 3, padding=1, form="generated", **options).double()
    nn.init.normal_(twist.twist)
    separate = copy.deepcopy(twist)
    separate.form = "separate"
    return twist, separate


@pytest.mark.parametrize(("tie", "degree"), TIED)
@pytest.mark.parametrize("options", [{}, {"stride": 2, "groups": 2}, {"dilation": 2, "bias": False}])
def test_values_and_gradients_are_those_of_the_twist(tie, degree, options):
    found, expected = ([], [])
    for module, results in zip(forms(tie=tie, degree=degree, **options), (found, expected), strict=True):
        u = torch.randn(2, 4, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        y = module(u.requires_grad_())
        results += [y, *torch.autograd.grad(y.square().sum(), [u, *module.parameters()])]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_autocast_keeps_double_precision():
    twist, _ = forms()
    with torch.autocast("cpu", torch.bfloat16):
        assert twist(torch.randn(2, 4, 5, 5, dtype=torch.float64)).dtype == torch.float64


def test_multiply_adds_are_those_of_the_form():
    network = nn.Sequential(TwistConv2d(16, 16, 3, padding=1, form="generated"))
    assert cost.multiply_adds(network, (16, 8, 8)) == (9 + 4) * 16 * 16 * 8 * 8


class Counting:
    """A kernel that supports everything and counts its calls."""

    calls = 0

    def supports(self, u, weight, twist, groups):
        return True

    def generated_convolution(self, u, *arguments):
        self.calls += 1
        return u


@pytest.mark.parametrize("kernel", [None, Counting()])
def test_the_registered_kernel_is_used(monkeypatch, kernel):
    monkeypatch.setattr(acceleration, "twist", acceleration.Slot(kernel))
    u = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    for form in ("auto", "generated"):
        twist = TwistConv2d(4, 4, 3, padding=1, form=form)
        y = twist(u)
        if kernel is None:
            torch.testing.assert_close(y, nn.functional.conv2d(u, twist.weight, twist.bias, padding=1))
    assert kernel is None or kernel.calls == 2
