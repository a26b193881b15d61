import pytest
import torch
from torch import nn

from resode.training import optimisers
from resode.training.averaging import ParameterAverage, estimate_statistics
from resode.training.experiment import SGD, AdamW


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def take_steps(module: nn.Module, optimiser: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        inputs = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimiser.zero_grad()
        module(inputs).square().mean().backward()
        optimiser.step()


def test_sgd_is_the_formula():
    """v <- m v + g + wd theta; theta <- theta - lr (g + wd theta + m v) with Nesterov."""
    theta = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    module = nn.Module()
    module.register_parameter("theta", theta)
    optimiser = optimisers.build(module, SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01))
    expected, velocity = 2.0, 0.0
    for _ in range(3):
        theta.grad = 3 * theta.detach()
        gradient = 3 * expected + 0.01 * expected
        velocity = 0.9 * velocity + gradient
        expected -= 0.1 * (gradient + 0.9 * velocity)
        optimiser.step()
        assert theta.item() == pytest.approx(expected, rel=1e-14)


def test_norms_and_biases_can_be_left_undecayed():
    optimiser = optimisers.build(small(), SGD(weight_decay=0.1, decay_norms=False))
    decays = {group["weight_decay"]: len(group["params"]) for group in optimiser.param_groups}
    assert decays == {0.1: 2, 0.0: 4}


@pytest.mark.parametrize("section", [SGD(nesterov=True), AdamW()])
def test_the_state_travels_by_name_and_goes_on_in_the_same_bits(section):
    module = small()
    optimiser = optimisers.build(module, section)
    take_steps(module, optimiser, range(3))
    state = {name: tensor.clone() for name, tensor in optimisers.state_tensors(optimiser, module)}
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    take_steps(module, optimiser, range(3, 6))

    again = small()
    again.load_state_dict(weights)
    fresh = optimisers.build(again, section)
    optimisers.load_state_tensors(fresh, again, state)
    take_steps(again, fresh, range(3, 6))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_average_is_exponential_and_leaves_statistics_alone():
    module = small()
    average = ParameterAverage(module, 0.9)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser = optimisers.build(module, SGD())
    for seed in range(4):
        take_steps(module, optimiser, range(seed, seed + 1))
        average.update(module)
        for name, p in module.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * p.detach()
    averaged = average.apply_to(module)
    for name, p in averaged.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])
    assert torch.equal(averaged[1].running_mean, module[1].running_mean)


def test_estimated_statistics_are_the_mean_over_the_batches():
    module = small().eval()
    inputs = torch.randn(32, 1, 8, 8)
    estimate_statistics(module, inputs.split(8))
    with torch.no_grad():
        outputs = module[0](inputs)
    torch.testing.assert_close(module[1].running_mean, outputs.mean((0, 2, 3)))
    assert module[1].momentum == 0.1
    assert not module.training
