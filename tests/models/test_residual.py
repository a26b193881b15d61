"""Recomputation in classical networks: values, gradients and statistics of plain backpropagation."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import resode
from resode.errors import InputError
from resode.gradients import Checkpointed, Stored
from resode.models import create, name_and_options

NETWORKS = {
    "he_resnet20": {"widths": (4, 8, 16)},
    "he_preact_resnet20": {"widths": (4, 8, 16), "shortcut": "B"},
    "cifar_resnet50": {"widths": (2, 2, 4, 4)},
    "cifar_resnet18": {"widths": (4, 4, 8, 8), "activated": True},
}
PLANS = {
    "he_resnet20": [[2, 1], 2, 4],
    "he_preact_resnet20": [[[1, 1], 1, 2], 4, 0],
    "cifar_resnet50": [3, [2, 2, 1], 8],
    "cifar_resnet18": [1, 1, 6],
}


def step(network, x, precision=None):
    """Logits, gradients and buffers after one training step's backward pass."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        logits = network(x)
    nn.functional.cross_entropy(logits.float(), torch.arange(len(x)) % 10).backward()
    found = {"logits": logits.detach(), "x": x.grad}
    found |= {name: p.grad for name, p in network.named_parameters()}
    return found | {f"buffer {name}": b.clone() for name, b in network.named_buffers()}


def methods(name):
    return Checkpointed(), Checkpointed(every=1), Checkpointed(levels=2), Checkpointed(plan=PLANS[name])


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_recomputation_is_exact_bit_for_bit(name, precision):
    torch.manual_seed(0)
    plain = create(name, **NETWORKS[name])
    x = torch.randn(6, 3, 16, 12)
    if precision == torch.float64:
        plain, x = plain.double(), x.double()
    expected = step(copy.deepcopy(plain), x, precision)
    for method in methods(name):
        network = copy.deepcopy(plain)
        network.set_gradient(method)
        found = step(network, x, precision)
        assert all(torch.equal(found[key], value) for key, value in expected.items()), method


def test_a_twisted_network_keeps_its_method_and_is_exact():
    torch.manual_seed(0)
    twisted = resode.twist(create("he_resnet20", widths=(4, 8, 16), gradient="checkpointed"), tie="conformal")
    assert twisted.gradient == Checkpointed()
    for p in twisted.parameters():
        p.data += 0.01 * torch.randn_like(p)
    plain = copy.deepcopy(twisted)
    plain.set_gradient("stored")
    x = torch.randn(4, 3, 16, 16)
    expected = step(plain, x)
    assert all(torch.equal(value, expected[key]) for key, value in step(twisted, x).items())


def test_recomputed_dropout_draws_the_same_masks():
    class Dropping(nn.Module):
        def __init__(self, unit):
            super().__init__()
            self.unit, self.dropout = unit, nn.Dropout(0.5)

        def forward(self, y):
            return self.dropout(self.unit(y))

    found = []
    for method in ("stored", Checkpointed(every=2), Checkpointed(levels=2)):
        torch.manual_seed(0)
        network = create("he_resnet20", widths=(4, 8, 16))
        for layer in (network.layer1, network.layer2, network.layer3):
            for i in range(len(layer)):
                layer[i] = Dropping(layer[i])
        network.set_gradient(method)
        found.append(step(network, torch.randn(4, 3, 8, 8)))
    for other in found[1:]:
        assert all(torch.equal(other[key], value) for key, value in found[0].items())


def test_frozen_norms_and_weights_stay_frozen():
    torch.manual_seed(0)
    plain = create("he_resnet20", widths=(4, 8, 16))
    plain.layer2.eval()
    for p in plain.layer2.parameters():
        p.requires_grad_(False)
    network = copy.deepcopy(plain)
    network.set_gradient("checkpointed")
    x = torch.randn(4, 3, 8, 8)
    expected, found = step(plain, x), step(network, x)
    for key, value in expected.items():
        assert (value is None and found[key] is None) or torch.equal(found[key], value)


def test_a_second_derivative_is_that_of_plain_backpropagation():
    torch.manual_seed(0)
    plain = create("he_resnet8", widths=(2, 4, 4)).double()
    network = copy.deepcopy(plain)
    network.set_gradient(Checkpointed(every=2))
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)

    def curvature(net):
        parameters = list(net.parameters())
        first = torch.autograd.grad(net(x).square().sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)

    for a, b in zip(curvature(plain), curvature(network), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_evaluation_and_inference_are_unchanged():
    plain = create("he_resnet20", widths=(4, 8, 16))
    network = copy.deepcopy(plain)
    network.set_gradient("checkpointed")
    x = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(network.eval()(x), plain.eval()(x))
    assert list(network.state_dict()) == list(plain.state_dict())


def test_hooks_of_stages_are_called_and_other_stages_are_units():
    class Twice(nn.Module):
        def __init__(self, stage):
            super().__init__()
            self.stage = stage

        def forward(self, y):
            return 2 * self.stage(y)

    torch.manual_seed(0)
    network, x, seen = create("he_resnet20", widths=(4, 4, 8)), torch.randn(2, 3, 8, 8), []
    network.layer2.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    before = network.eval()(x)
    assert seen == [(2, 4, 4, 4)]
    network.layer3 = Twice(network.layer3)
    assert len(network.units()) == 3 + 1 + 1
    expected = step(copy.deepcopy(network).train(), x)
    assert not torch.equal(network(x), before)
    network.set_gradient(Checkpointed(every=2))
    found = step(network.train(), x)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_parameters_that_are_exchanged_before_the_backward_pass_are_an_error():
    network = create("he_resnet20", widths=(4, 4, 8), gradient="checkpointed")
    others = {name: 2 * p for name, p in network.named_parameters()}
    y = functional_call(network, others, torch.randn(2, 3, 8, 8))
    with pytest.raises(RuntimeError, match="a parameter was changed or exchanged"):
        y.sum().backward()


def test_a_unit_that_writes_a_buffer_of_its_own_is_refused():
    network = create("he_resnet20", widths=(4, 4, 8))
    nn.utils.parametrizations.spectral_norm(network.units()[1].conv1)
    x = torch.randn(2, 3, 8, 8)
    network(x).sum().backward()  # stored gradients take it
    network.set_gradient(Checkpointed(every=2))
    with pytest.raises(RuntimeError, match=r"a buffer was written .*needs gradient stored"):
        network(x).sum().backward()
    network.eval()(x).sum().backward()  # where it writes nothing


def test_a_method_given_as_an_object_is_described():
    network = create("he_resnet20", gradient=Checkpointed(every=2))
    assert name_and_options(network)[1]["gradient"] == {"name": "checkpointed", "every": 2}


@pytest.mark.parametrize("gradient", ["reversible", "adjoint"])
def test_reversible_and_adjoint_gradients_are_refused(gradient):
    with pytest.raises(
        InputError, match=r"the units of a ResNet have no inverse .*take stored or checkpointed"
    ):
        create("he_resnet20", gradient=gradient)


def test_the_method_is_an_option_of_every_classical_model():
    assert create("he_resnet20").gradient == Stored()
    for name in NETWORKS:
        made = create(name, gradient={"name": "checkpointed", "every": 2})
        assert made.gradient == Checkpointed(every=2)
    with pytest.raises(InputError, match="the plan is for 3 steps, here are 9"):
        create("he_resnet20", gradient={"name": "checkpointed", "plan": [2, 1]})
    with pytest.raises(InputError, match=r"unknown gradient 'chekpointed'.*checkpointed"):
        create("he_resnet20", gradient="chekpointed")
