"""The semi-implicit steps of Haber et al. 2019, against the numbers of their code.

`tests/golden/make/imexnet.py` ran IMEXnet in float64. Its network never leaves training mode, keeps the
kernels K of the steps at mean zero, and trains neither the scales and biases of its norms nor a bias of its
classifier: `kept` and `network` do here what the recipe haber2019/imex names as differences.
"""

from itertools import pairwise

import pytest
import torch
from torch import nn

from resode import DynamicNet, Stage
from resode.errors import InputError
from resode.fields import Hamiltonian, Parabolic
from resode.integrators import IMEX
from resode.models.transitions import Connector, Head, Stem
from resode.training import Experiment
from tests.fidelity.training import EVALUATED, TRAINED, Golden, assert_close, error, take, trainer_of

SCHEME = IMEX(zero_mean=True, normed=True)
SETTINGS = {
    "schedule": {"name": "constant"},
    "optimizer.lr": 1e-3, "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0,
}  # fmt: skip
LAYERS = {0: ("stem", None), 3: ("connectors.0", None)}
LAYERS |= {j: (f"stages.{s}", k) for j, s, k in ((1, 0, 0), (2, 0, 1), (4, 1, 0), (5, 1, 1))}


@pytest.fixture(scope="module")
def golden():
    return Golden("imexnet")


def network(scheme=SCHEME):
    field = Hamiltonian(norm="batch", bias=False)
    stages = [Stage(width, field, scheme, states=2) for width in (4, 6)]
    net = DynamicNet(stages, stem=Stem(), connector=Connector(kernel=3, pool="none"), head=Head(), classes=5)
    nn.init.zeros_(net.head.linear.bias)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("norm" not in name and name != "head.linear.bias")
    return net.double()


def named(tensors):
    """The original's tensors by our names; those of L are the coefficients B of the scheme."""
    found = {"head.linear.weight": tensors["W"].flatten(1)}
    for j, (place, node) in LAYERS.items():
        found[f"{place}.{'' if node is None else f'controls.{node}.'}conv.weight"] = tensors[f"K.{j}"]
    for stage, (first, second) in enumerate(((1, 2), (4, 5))):
        found[f"stages.{stage}.scheme.B"] = torch.stack([tensors[f"L.{j}"][:, 0] for j in (first, second)])
    return found


def zero_mean(kernel):
    return kernel - kernel.mean((-2, -1), keepdim=True)


def loaded(tensors, scheme=SCHEME):
    net = network(scheme)
    state = named(tensors)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("norm" in name or name == "head.linear.bias" for name in missing)
    return net


def test_logits_are_those_of_the_original(golden):
    net = loaded(golden.part("state"))
    states = []
    net.head.register_forward_pre_hook(lambda module, given: states.append(given[0]))
    with torch.no_grad():
        logits = net(golden["images"][0])
        pixels = torch.einsum("kc,nchw->nkhw", net.head.linear.weight, states[0])
    assert error(logits, golden["logits"]) <= EVALUATED
    assert error(pixels, golden["pixel_logits"]) <= EVALUATED


@pytest.mark.parametrize("scheme", [IMEX(), IMEX(zero_mean=True), IMEX(normed=True)])
def test_the_logits_depend_on_both_options(scheme, golden):
    tensors = golden.part("state")
    tensors |= {name: t + 0.1 for name, t in tensors.items() if name.startswith("L.")}
    with torch.no_grad():
        logits = loaded(tensors, scheme)(golden["images"][0])
        own = loaded(tensors)(golden["images"][0])
    assert error(own, golden["logits"]) <= EVALUATED
    assert error(logits, golden["logits"]) > 1e-3


def begun(golden):
    net = loaded(golden.part("state"))
    return trainer_of("haber2019/imex", net, golden["images"], golden["labels"], classes=5, **SETTINGS)


def test_gradients_are_those_of_the_original(golden):
    """That of B is the original's without its mean: only such a B moves."""
    trainer = begun(golden)
    _, loss = trainer.predict(trainer.setup.training.batches[0])
    loss.backward()
    assert loss.item() == pytest.approx(golden["losses"][0].item(), rel=EVALUATED)
    expected = named(golden.part("gradient"))
    expected |= {name: zero_mean(t) for name, t in expected.items() if name.endswith("B")}
    found = {name: p.grad for name, p in trainer.module.named_parameters() if p.requires_grad}
    assert_close(found, expected, EVALUATED)


def kept(net):
    """Keep the kernels K of the steps at mean zero, as the original does before each forward pass."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "controls" in name and name.endswith("conv.weight"):
                parameter.copy_(zero_mean(parameter))


def test_three_steps_are_those_of_the_original(golden):
    trainer = begun(golden)
    losses = take(trainer, kept)
    assert losses == pytest.approx(golden["losses"].tolist(), rel=TRAINED)
    found = {name: p.detach() for name, p in trainer.module.named_parameters() if p.requires_grad}
    assert_close(found, named(golden.part("after")), TRAINED)


# ---------------------------------------------------------------- the options


def test_a_kernel_of_mean_zero_keeps_constant_images():
    kernel, y = torch.randn(2, 3, 3, dtype=torch.float64), torch.ones(1, 2, 5, 5, dtype=torch.float64)
    (kept,) = IMEX(zero_mean=True).step(STEP, lambda i, y: 0 * y, (y,), {"B": kernel})
    (smoothed,) = IMEX().step(STEP, lambda i, y: 0 * y, (y,), {"B": kernel})
    torch.testing.assert_close(kept, y, rtol=0, atol=1e-13)
    assert (smoothed - y).abs().max() > 1e-3


STEP = Stage(2, "parabolic", "imex", 1).states.step(0)


@pytest.mark.parametrize("gradient", ["checkpointed", {"name": "checkpointed", "every": 1}])
def test_recomputation_gives_the_same_gradients_and_statistics(gradient):
    grads = []
    for method in ("stored", gradient):
        torch.manual_seed(0)
        net = DynamicNet(
            [Stage(4, Hamiltonian(norm="batch"), SCHEME, 3, gradient=method)], classes=3
        ).double()
        net(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
        grads.append([p.grad for p in net.parameters()] + list(net.buffers()))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_each_solve_has_running_statistics_of_its_own_and_only_its_norms():
    net = DynamicNet([Stage(4, Hamiltonian(norm="batch"), SCHEME, 2)], classes=3)
    net(torch.randn(4, 3, 8, 8))
    (block,) = net.blocks()
    means = [statistics.get_buffer("norm.running_mean") for statistics in block.statistics]
    assert len(means) == 4
    assert all((a - b).abs().max() > 0 for a, b in pairwise(means))
    assert "N(y + h f(t, y)), B0 = B minus the mean" in net.explain()
    assert block.field_evaluations == 2
    assert not any("grows" in line for line in net.warnings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_mean": "yes"}, "zero_mean 'yes'; true or false is needed"),
        ({"normed": 1}, "normed 1; true or false is needed"),
        ({"variant": "field", "normed": True}, "normed is an option of the variant damped"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(InputError, match=message):
        IMEX(**options)


@pytest.mark.parametrize("field", ["preactivation", Parabolic(norm=None)])
def test_a_field_without_a_norm_of_its_own_is_refused(field):
    with pytest.raises(InputError, match="normed applies the norm N of the field"):
        DynamicNet([Stage(4, field, SCHEME, 1)], classes=3)


def test_the_recipe_names_what_differs():
    text = " ".join(Experiment.from_recipe("haber2019/imex").about.differs)
    for word in ("zero_mean", "normed", "symmetric", "segments", "training mode"):
        assert word in text
