"""Checkpointed steps have the bits of plain backpropagation, for units of any kind."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import resode
from resode.blocks import DynamicBlock
from resode.fields.batch_norm import BatchNorm2d
from resode.gradients import Checkpointed
from resode.stages import Stage
from tests.batch_moments import Counting


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def classical(method):
    torch.manual_seed(0)
    network = resode.create("he_resnet20")
    network.set_gradient(method)
    return network, torch.randn(4, 3, 16, 16)


def dynamic(method):
    torch.manual_seed(0)
    return DynamicBlock(
        Stage(16, {"name": "preactivation", "norm": "batch"}, "heun", 4, gradient=method)
    ), torch.randn(4, 16, 8, 8)


def step(made, x, half):
    """The value, the gradients and the running statistics of a training step that is gone through twice."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = made(x)
    loss = y.float().square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return [y, *(p.grad for p in made.parameters()), *made.buffers()]


# In bf16 the steps of a dynamic block share half-precision copies of parameters, where gradients are summed.
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("kind", "half"), [(classical, False), (classical, True), (dynamic, False)])
def test_a_checkpointed_step_has_the_bits_of_the_plain_one(kind, levels, half):
    plain = step(*kind("stored"), half)
    assert equal(step(*kind(Checkpointed(every=2, levels=levels)), half), plain)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("kind", [classical, dynamic])
def test_recomputation_reuses_the_moments_of_batches(kind, levels):
    counts = []
    for method in ("stored", Checkpointed(every=2, levels=levels)):
        network, x = kind(method)
        with Counting() as counting:
            network(x).sum().backward()
        counts.append(counting.computed)
    assert counts[0] == counts[1] > 0


def test_a_unit_that_stands_twice_has_the_bits_of_the_plain_one():
    found = []
    for method in ("stored", Checkpointed(every=2)):
        network, x = classical(method)
        network.layer1[2] = network.layer1[1]
        found.append(step(network, x, half=False))
    assert equal(*found)


@pytest.mark.parametrize("early", [True, False])
def test_a_step_may_differentiate_within(early):
    class Descending(nn.Module):
        def __init__(self, unit):
            super().__init__()
            self.unit = unit

        def forward(self, y):
            z = self.unit(y)
            (g,) = torch.autograd.grad(z.sum(), y, retain_graph=True)
            return z - 0.1 * g.detach()

    found = []
    for method in ("stored", Checkpointed(plan=(3, 3, 3))):
        network, x = classical(method)
        network.layer1[1], network.layer2[1] = Descending(network.layer1[1]), Descending(network.layer2[1])
        with torch.utils.checkpoint.set_checkpoint_early_stop(early):
            found.append(step(network, x, half=False))
    assert equal(*found)


class Twice(nn.Module):
    """Calls a norm on what does not fit, and then on what does."""

    def __init__(self, unit):
        super().__init__()
        self.unit, self.norm = unit, BatchNorm2d(16)

    def forward(self, y):
        z = self.norm(y[:, :, ::2, ::2]).mean()
        return self.unit(z + self.norm(2 * y + y.flip(3).relu()))


class Within(nn.Module):
    """Is checkpointed by torch itself."""

    reentrant = False

    def __init__(self, unit):
        super().__init__()
        self.unit = unit

    def forward(self, y):
        return torch.utils.checkpoint.checkpoint(self.unit, y, use_reentrant=self.reentrant)


class Reentrant(Within):
    """Is checkpointed by torch itself, in its older way."""

    reentrant = True


class Shared(Within):
    """Calls the same norms inside a checkpoint of torch, outside, and inside once more."""

    def forward(self, y):
        return super().forward(self.unit(2 * super().forward(y) - 1).cos())


class Torchs(nn.Module):
    """Has a norm of torch between those of this package."""

    def __init__(self, unit):
        super().__init__()
        self.unit, self.norm = unit, nn.BatchNorm2d(16)

    def forward(self, y):
        return self.unit(self.norm(self.unit(y)))


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("wrapper", [Twice, Within, Reentrant, Shared, Torchs])
def test_units_of_ones_own_have_the_bits_of_the_plain_step(wrapper, levels):
    found = []
    for method in ("stored", Checkpointed(every=2, levels=levels)):
        network, x = classical(method)
        network.layer1[1] = wrapper(network.layer1[1])
        found.append(step(network, x, half=False))
    assert equal(*found)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode_goes_through():
    network, x = classical(Checkpointed(every=2))
    with forward_ad.dual_level():
        y = network(forward_ad.make_dual(x, torch.ones_like(x)))
        assert forward_ad.unpack_dual(y).tangent is not None
