"""Networks of Ruthotto & Haber in the version of their code, against the numbers of that code.

`tests/golden/make/meganet.py` ran Meganet.m in float64: networks, loss and penalties, SGD and bounds.
"""

import pytest
import torch

import resode
from resode.training import Experiment
from tests.fidelity.training import EVALUATED, TRAINED, Golden, assert_close, error, take, trainer_of

KINDS = {"parabolic": "parabolic", "hamiltonian": "hamiltonian", "second_order": "leapfrog"}
DECAY, KEPT = 2e-4, 0.81  # KEPT: of the running statistics in a step, in which Meganet.m updates them twice
# runCIFAR10.m, but for the bounds of biases outside the blocks, which none of them reaches in three steps.
MEGANET = {
    "schedule": {"name": "constant"},
    "optimizer.lr": 0.05, "optimizer.decay_norms": False, "optimizer.decay_biases": True,
    "box": {"controls": 1, "convolutions": 1, "norms": 1, "linear": 1},
    "smoothness": {"total_variation": 2e-4, "epsilon": 1e-3},
}  # fmt: skip

every_kind = pytest.mark.parametrize("kind", KINDS)


def network(kind):
    options = {"widths": [4, 6], "last": 6, "version": "meganet", "classes": 5}
    return resode.create("ruthotto_haber", kind=kind, **options).double().eval()


def layers(net):
    """Convolution and norm of each layer, in Meganet's order."""
    pairs = [(net.stem.conv, net.stem.norm)]
    for block, connector in zip(net.stages, net.connectors, strict=True):
        for node in block.controls:
            parts = [node["F"], node["G"]] if isinstance(node, torch.nn.ModuleDict) else [node]
            pairs += [(part.conv, part.norm) for part in parts]
        pairs.append((connector.conv, connector.norm))
    return pairs


def named(net, tensors):
    """Meganet's vectors of weights by our names; its kernels are stored rows first, inputs before outputs."""
    theta, found = tensors["theta"], {}
    names = {id(p): name for name, p in net.named_parameters()}
    for conv, norm in layers(net):
        for parameter in (conv.weight, norm.weight, norm.bias):
            values, theta = theta[: parameter.numel()], theta[parameter.numel() :]
            kernel = values.view(parameter.shape)
            found[names[id(parameter)]] = kernel.mT if parameter.ndim == 4 else kernel
    assert len(theta) == 0
    weights = tensors["W"].view(7, 5).T
    return found | {"head.linear.weight": weights[:, :6], "head.linear.bias": weights[:, 6]}


def running(net, values):
    """Running statistics by our names."""
    found = {}
    names = {id(b): name for name, b in net.named_buffers()}
    for norm in (net.stem.norm, *(connector.norm for connector in net.connectors)):
        c = norm.num_features
        mean, variance, values = values[:c], values[c : 2 * c], values[2 * c :]
        found |= {names[id(norm.running_mean)]: mean, names[id(norm.running_var)]: variance}
    return found


def loaded(kind, golden, moment="state"):
    net = network(kind)
    state = named(net, golden.part(moment)) | running(net, golden[f"{moment}.running"])
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return net


@every_kind
@pytest.mark.parametrize(("moment", "logits"), [("state", "logits"), ("after", "after_logits")])
def test_logits_in_evaluation_are_those_of_meganet(kind, moment, logits):
    golden = Golden(f"meganet-{KINDS[kind]}")
    with torch.no_grad():
        found = loaded(kind, golden, moment)(golden["images"][0])
    assert error(found, golden[logits]) <= EVALUATED


def begun(kind, golden):
    net = loaded(kind, golden)
    return trainer_of("ruthotto2018/parabolic", net, golden["images"], golden["labels"], classes=5, **MEGANET)


@every_kind
def test_loss_and_gradient_are_those_of_meganet(kind):
    """Without weight decay, which is no part of our loss."""
    golden = Golden(f"meganet-{KINDS[kind]}")
    trainer = begun(kind, golden)
    net, (first, *_) = trainer.module, trainer.setup.training.batches
    _, loss = trainer.predict(first)
    trainer.objective(loss).backward()
    decayed = {n: p for n, p in net.named_parameters() if p.ndim > 1 or n == "head.linear.bias"}
    decay = sum(DECAY / 2 * p.square().sum().item() for p in decayed.values())
    assert trainer.objective(loss).item() + decay == pytest.approx(golden["losses"][0].item(), rel=EVALUATED)
    found = {n: p.grad + (DECAY * p.detach() if n in decayed else 0) for n, p in net.named_parameters()}
    assert_close(found, named(net, golden.part("gradient")), EVALUATED)


@every_kind
def test_three_steps_are_those_of_meganet(kind):
    golden = Golden(f"meganet-{KINDS[kind]}")
    trainer = begun(kind, golden)
    assert take(trainer) == pytest.approx(golden["fits"].tolist(), rel=TRAINED)
    weights = dict(trainer.module.named_parameters())
    assert_close(weights, named(trainer.module, golden.part("after")), TRAINED)
    assert max(p.abs().max() for name, p in weights.items() if name.startswith("stages")) == 1


@every_kind
def test_running_statistics_differ_from_meganets_in_the_unbiased_variance_alone(kind):
    golden = Golden(f"meganet-{KINDS[kind]}")
    trainer = begun(kind, golden)
    take(trainer)
    net = trainer.module
    start, expected = (running(net, golden[f"{moment}.running"]) for moment in ("state", "after"))
    for name, variance in expected.items():
        if name.endswith("running_var"):
            pixels = 4 * (4 if name.startswith("connectors.1") else 8) ** 2
            kept = KEPT**3 * start[name]
            expected[name] = kept + (variance - kept) * pixels / (pixels - 1)
    assert_close({n: t for n, t in net.state_dict().items() if n in expected}, expected, TRAINED)


@every_kind
def test_the_version_of_the_code_begins_with_the_same_theta_at_all_steps(kind):
    net = resode.create("ruthotto_haber", kind=kind, widths=[16, 32], version="meganet")
    for block in net.stages:
        first = block.controls[0].state_dict()
        for node in block.controls:
            assert all(torch.equal(t, first[name]) for name, t in node.state_dict().items())
    for conv, _ in layers(net):
        deviation = (2 / conv.weight.numel()) ** 0.5
        assert conv.weight.abs().max() <= 2 * deviation * (1 + 1e-6)
        assert conv.weight.std().item() == pytest.approx(deviation, rel=0.35)
    assert net.head.linear.weight.abs().max() <= 0.2
    with pytest.raises(resode.errors.InputError, match="did you mean 'meganet'"):
        resode.create("ruthotto_haber", version="meganett")


@pytest.mark.parametrize("kind", ["parabolic", "hamiltonian", "second-order"])
@pytest.mark.parametrize("data", ["", "-cifar100", "-stl10"])
def test_every_recipe_says_where_it_departs_from_the_code(kind, data):
    lines = Experiment.from_recipe(f"ruthotto2018/{kind}{data}").about.differs
    text = " ".join(lines)
    for word in ("smooth", "-1 ... 1", "initial", "theta", "batch"):
        assert word in text
    assert ("sign" in text) == (kind == "hamiltonian")
