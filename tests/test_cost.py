"""Costs against figures by hand and against what really happens."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resode import cost
from resode.models import create, models

SMALL = {
    "he_resnet8": {"widths": (4, 8, 16)},
    "he_preact_resnet14": {"widths": (4, 8, 16), "shortcut": "B", "stride": "last"},
    "cifar_resnet50": {"widths": (4, 4, 6, 6)},
}


def test_resnet20_has_40_55_million_multiply_adds():
    stem = 3 * 16 * 9 * 32**2
    stage1 = 6 * 16 * 16 * 9 * 32**2
    stage2 = (16 * 32 + 5 * 32 * 32) * 9 * 16**2
    stage3 = (32 * 64 + 5 * 64 * 64) * 9 * 8**2
    by_hand = stem + stage1 + stage2 + stage3 + 64 * 10
    assert by_hand == 40_551_040
    assert cost.multiply_adds(create("he_resnet20"), (3, 32, 32)) == by_hand


@pytest.mark.parametrize("name", SMALL)
def test_multiply_adds_are_those_of_pytorchs_counter(name):
    network = create(name, **SMALL[name]).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 3, 24, 20))
    assert cost.multiply_adds(network, (3, 24, 20)) == counter.get_total_flops() // 2
    with torch.inference_mode():
        assert cost.multiply_adds(network, (3, 24, 20)) == counter.get_total_flops() // 2


def test_counting_works_on_the_meta_device():
    with torch.device("meta"):
        sketch = create("he_resnet20")
    assert cost.estimate(sketch, (3, 32, 32), 8) == cost.estimate(create("he_resnet20"), (3, 32, 32), 8)


def test_counting_changes_nothing():
    network = create("he_resnet8")
    network.layer2.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    cost.estimate(network, (3, 32, 32), 4, dtype=torch.bfloat16)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(tensor.grad is None for tensor in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_shared_layer_counts_its_parameters_once_and_its_work_twice():
    layer = nn.Conv2d(3, 3, 1)
    network = nn.Sequential(layer, nn.ReLU(), layer)
    assert cost.parameters(network) == 12
    assert cost.multiply_adds(network, (3, 5, 5)) == 2 * 9 * 25


def test_counting_leaves_a_part_that_is_used_twice_as_it_is():
    """Under both of its names, and where only the tensor is shared."""
    layer, other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    other.weight = layer.weight
    network = nn.Sequential(layer, nn.ReLU(), layer, other, nn.Flatten(), nn.Linear(3 * 64, 2))
    before = dict(network.named_parameters(remove_duplicate=False))
    cost.estimate(network, (3, 8, 8), 2)
    after = dict(network.named_parameters(remove_duplicate=False))
    assert all(after[name] is tensor for name, tensor in before.items())


def test_the_memory_of_a_step_is_the_sum_of_its_parts():
    network = create("he_resnet8")
    network.conv1.requires_grad_(False)
    counted = cost.estimate(network, (3, 32, 32), 2, moments=2)
    count = cost.parameters(network)
    trainable = count - network.conv1.weight.numel()
    assert counted.parameters == count
    assert counted.parameter_bytes == 4 * count
    assert counted.gradient_bytes == 4 * trainable
    assert counted.optimizer_bytes == 8 * trainable
    assert counted.training_bytes == 4 * count + 12 * trainable + counted.activation_bytes


@pytest.mark.slow
def test_resnet1202_needs_11_8_gb_in_fp32_and_6_2_in_bf16():
    with torch.device("meta"):
        network = create("he_resnet1202")
    assert cost.estimate(network, (3, 32, 32), 128).activation_bytes == pytest.approx(11.8e9, rel=0.01)
    counted = cost.estimate(network, (3, 32, 32), 128, dtype=torch.bfloat16)
    assert counted.training_bytes == pytest.approx(6.2e9, rel=0.01)


@pytest.mark.slow
def test_every_listed_model_is_counted():
    for name in models.names():
        if models.entry(name).required:  # has no network of its own
            continue
        with torch.device("meta"):
            network = create(name)
        assert cost.multiply_adds(network, models.entry(name).shape) > cost.parameters(network)
