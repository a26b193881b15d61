import pytest
import torch
from torch import nn

from resode.fields import TvNorm
from resode.statistics import estimate_statistics
from resode.training.optim import muon, optimizers
from resode.training.optim.averaging import ParameterAverage
from resode.training.recipe.optimizer import SGD, AdamW, Muon


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def take_steps(module: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        inputs = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(inputs).square().mean().backward()
        optimizer.step()


def test_sgd_is_the_formula():
    """v <- m v + g + wd theta; theta <- theta - lr (g + wd theta + m v) with Nesterov."""
    theta = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    module = nn.Module()
    module.register_parameter("theta", theta)
    optimizer = optimizers.build(module, SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01))
    expected, velocity = 2.0, 0.0
    for _ in range(3):
        theta.grad = 3 * theta.detach()
        gradient = 3 * expected + 0.01 * expected
        velocity = 0.9 * velocity + gradient
        expected -= 0.1 * (gradient + 0.9 * velocity)
        optimizer.step()
        assert theta.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (1, 7)])
def test_muon_makes_singular_values_equal_and_keeps_singular_vectors(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = u.mT @ muon.orthogonalised(1e3 * matrix) @ vt.mT
    values = found.diagonal()
    torch.testing.assert_close(found, values.diag(), rtol=0, atol=1e-12)
    assert values.min() > 0.68
    assert values.max() < 1.21
    a, b, c = muon.COEFFICIENTS
    x = s / s.norm()
    for _ in range(muon.STEPS):
        x = a * x + b * x**3 + c * x**5  # the published iteration, of each singular value
    torch.testing.assert_close(values, x, rtol=1e-10, atol=1e-12)


def test_muon_leaves_a_zero_matrix_and_takes_many_at_once():
    assert not muon.orthogonalised(torch.zeros(3, 5)).any()
    matrices = torch.randn(4, 3, 5, dtype=torch.float64)
    one_by_one = torch.stack([muon.orthogonalised(matrix) for matrix in matrices])
    torch.testing.assert_close(muon.orthogonalised(matrices), one_by_one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_the_formula_for_kernels_and_sgd_for_the_others(nesterov):
    """W <- (1 - lr wd) W - lr max(1, sqrt(o / i)) O(d); rates follow the schedule in proportion."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 27, 3, bias=False), nn.Flatten(), nn.Linear(27, 2)).double()
    alone = nn.Linear(27, 2).double()
    alone.load_state_dict(module[2].state_dict())
    sgd = SGD(lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.03)
    section = Muon(lr=0.2, momentum=0.7, nesterov=nesterov, weight_decay=0.1, others=sgd)
    optimizer, plain = optimizers.build(module, section), optimizers.build(alone, sgd)
    kernel = module[0].weight.detach().clone()
    velocity = torch.zeros_like(kernel)
    for step in range(3):
        optimizers.set_learning_rate(optimizer, 0.2 / (step + 1))
        optimizers.set_learning_rate(plain, 0.05 / (step + 1))
        for own in (*module.parameters(), *alone.parameters()):
            own.grad = (own.detach() + step).sin()
        g = (kernel + step).sin()
        velocity = 0.7 * velocity + g
        d = g + 0.7 * velocity if nesterov else velocity
        lr = 0.2 / (step + 1)
        turned = muon.orthogonalised(d.flatten(1)).view_as(kernel)
        kernel = (1 - lr * 0.1) * kernel - lr * (27 / 9) ** 0.5 * turned
        optimizer.step()
        plain.step()
        torch.testing.assert_close(module[0].weight.detach(), kernel, rtol=1e-12, atol=1e-12)
        for own, other in zip(module[2].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_norms_and_biases_can_be_left_undecayed():
    optimizer = optimizers.build(small(), SGD(weight_decay=0.1, decay_norms=False))
    decays = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    assert decays == {0.1: 2, 0.0: 4}


@pytest.mark.parametrize(
    ("norms", "biases", "free"),
    [
        (True, None, set()),
        (True, False, {"0.bias", "4.bias"}),
        (False, None, {"0.bias", "1.weight", "1.bias", "2.bias", "3.weight", "3.bias", "4.bias"}),
        (False, True, {"1.weight", "1.bias", "2.bias", "3.weight", "3.bias"}),
    ],
)
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_biases_are_decayed_apart_from_norms(kind, norms, biases, free):
    tv = TvNorm(scale=False)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), tv.build(4), nn.GroupNorm(2, 4), nn.Linear(4, 2)
    )
    optimizer = optimizers.build(module, kind(weight_decay=0.1, decay_norms=norms, decay_biases=biases))
    names = {id(p): name for name, p in module.named_parameters()}
    groups = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    assert groups.get(0.0, set()) == free
    assert groups[0.1] == set(names.values()) - free


@pytest.mark.parametrize("section", [SGD(nesterov=True), AdamW(), Muon()])
def test_the_state_travels_by_name_and_goes_on_in_the_same_bits(section):
    module = small()
    optimizer = optimizers.build(module, section)
    take_steps(module, optimizer, range(3))
    state = {name: tensor.clone() for name, tensor in optimizers.state_tensors(optimizer, module)}
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    take_steps(module, optimizer, range(3, 6))

    again = small()
    again.load_state_dict(weights)
    fresh = optimizers.build(again, section)
    optimizers.load_state_tensors(fresh, again, state)
    take_steps(again, fresh, range(3, 6))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_average_is_a_mean_at_first_then_exponential_and_leaves_statistics_alone():
    """With decay 3/4: a_1 ... a_4 are the means of theta_1 ... theta_k, then a <- 3/4 a + 1/4 theta."""
    module = small()
    average = ParameterAverage(module, 0.75)
    optimizer = optimizers.build(module, SGD())
    history = {name: [] for name, _ in module.named_parameters()}
    for step in range(6):
        take_steps(module, optimizer, range(step, step + 1))
        average.update(module, step)
        for name, p in module.named_parameters():
            history[name].append(p.detach().clone())
    expected = {name: torch.stack(states[:4]).mean(0) for name, states in history.items()}
    for name, states in history.items():
        for state in states[4:]:
            expected[name] = 0.75 * expected[name] + 0.25 * state
    averaged = average.apply_to(module)
    for name, p in averaged.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])
    assert torch.equal(averaged[1].running_mean, module[1].running_mean)


def test_estimated_statistics_are_the_mean_over_the_batches_whatever_else_is_random():
    module = nn.Sequential(*small()[:2], nn.Dropout(0.5), *small()[2:])
    module[2].eval()  # a part in a mode of its own keeps it
    inputs = torch.randn(32, 1, 8, 8)
    state = torch.get_rng_state()
    estimate_statistics(module, inputs.split(8))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        outputs = module[0](inputs)
    torch.testing.assert_close(module[1].running_mean, outputs.mean((0, 2, 3)))
    variance = torch.stack([part.var((0, 2, 3)) for part in outputs.split(8)]).mean(0)
    torch.testing.assert_close(module[1].running_var, variance)
    assert module[1].momentum == 0.1
    assert module.training
    assert not module[2].training


def test_a_parameter_may_get_its_first_gradient_late():
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = optimizers.build(module, SGD(nesterov=True))
    for parts in (1, 2):
        optimizer.zero_grad()
        sum(part(torch.ones(1, 2)).sum() for part in module[:parts]).backward()
        optimizer.step()
    assert not torch.equal(module[1].weight, nn.Linear(2, 2).weight)


@pytest.mark.parametrize("size", [0.0, 1e-25])
def test_muon_takes_gradients_that_are_zero_or_tiny(size):
    """The branches of a network that begins with F = 0 have none in the first step."""
    kernel = nn.Parameter(torch.ones(4, 3, 3, 3))
    optimizer = muon.Muon(
        [
            {
                "params": [kernel],
                "kernels": True,
                "lr": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 0.0,
            }
        ]
    )
    kernel.grad = size * torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert torch.isfinite(kernel).all()
    assert torch.equal(kernel, torch.ones(4, 3, 3, 3)) is (size == 0)
