"""akamaster's and fattorib's ResNets: their networks and their training, against their own numbers.

`tests/golden/make` ran both in float64. Their state_dicts are translated as `resode import` does; three steps
of our recipes, on the same images in the same order, end where theirs do.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resode import create
from resode.interop import FORMATS
from resode.training import Experiment
from tests.fidelity.training import EVALUATED, TRAINED, Golden, assert_close, rates, take, trainer_of


@pytest.fixture(params=["akamaster", "fattorib"])
def source(request):
    """Its name, its tensors, and a function that gives them our names."""
    return request.param, Golden(f"{request.param}-resnet20"), FORMATS[request.param].translate


def network(golden, translate):
    translation = translate(golden.part("state"))
    net = create(translation.model, widths=(2, 4, 8), **translation.options).double()
    net.load_state_dict(translation.tensors)
    return net


def test_initial_weights_have_the_variances_of_the_source(source):
    """2 / (9 inputs) for a convolution and 2 / inputs for the linear layer."""
    recipe = Experiment.from_recipe(f"{source[0]}/resnet20").model
    torch.manual_seed(0)
    net = create(recipe.name, **recipe.options)
    for name, weight in net.named_parameters():
        if weight.ndim > 1:
            n, inputs = weight.numel(), weight[0].numel()
            assert weight.var().item() == pytest.approx(2 / inputs, rel=5 * (2 / n) ** 0.5), name


def test_logits_and_gradients(source):
    _, golden, translate = source
    net = network(golden, translate)
    with torch.no_grad():
        assert_close({"": net.eval()(golden["inputs"][0])}, {"": golden["logits"]}, EVALUATED)
    loss = F.cross_entropy(net.train()(golden["inputs"][0]), golden["labels"][0])
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert_close(gradients, translate(golden.part("gradient")).tensors, EVALUATED)


def test_three_steps_of_the_recipe(source):
    """Scaling, loss, rate, momentum, weight decay of all parameters, running statistics."""
    name, golden, translate = source
    trainer = trainer_of(f"{name}/resnet20", network(golden, translate), golden["images"], golden["labels"])
    for step, inputs in enumerate(golden["inputs"]):
        assert_close({"": trainer.setup.training.batch(0, step).inputs}, {"": inputs}, EVALUATED)
        assert trainer.learning_rate(step) == pytest.approx(golden["rates"][step].item())
    losses = take(trainer)
    assert losses == pytest.approx(golden["losses"].tolist(), rel=TRAINED)
    assert_close(trainer.module.state_dict(), translate(golden.part("after")).tensors, TRAINED)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer.weight_decay": 0.0},
        {"optimizer.decay_norms": False},
        {"optimizer.momentum": 0.8},
        {"optimizer.nesterov": True},
        {"label_smoothing": 0.01},
        {"data.std": (0.23, 0.23, 0.23)},
    ],
    ids=str,
)
def test_another_recipe_ends_elsewhere(source, change):
    """The negative control: each setting shows in three steps."""
    name, golden, translate = source
    trainer = trainer_of(
        f"{name}/resnet20", network(golden, translate), golden["images"], golden["labels"], **change
    )
    take(trainer)
    expected = translate(golden.part("after")).tensors
    found = dict(trainer.module.named_parameters())
    with pytest.raises(AssertionError):
        assert_close(found, {key: expected[key] for key in found}, 1e-6)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_akamasters_rates_in_each_epoch(depth):
    """MultiStepLR with milestones 100 and 150; the two deepest networks have a tenth in the first epoch."""
    expected = np.repeat([0.1, 0.01, 0.001], [100, 50, 50])
    expected[0] = 0.01 if depth >= 110 else 0.1
    np.testing.assert_allclose(rates(f"akamaster/resnet{depth}"), expected)


@pytest.mark.parametrize(("depth", "epochs"), [(20, 180), (32, 180), (44, 200), (56, 200)])
def test_fattoribs_rates_in_each_epoch(depth, epochs):
    """A tenth after each epoch whose number is a multiple of 90 or of 135."""
    rate, expected = 0.1, []
    for epoch in range(1, epochs + 1):
        expected.append(rate)
        rate *= 0.1 if epoch % 90 == 0 or epoch % 135 == 0 else 1
    np.testing.assert_allclose(rates(f"fattorib/resnet{depth}"), expected)
