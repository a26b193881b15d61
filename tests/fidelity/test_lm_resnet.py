"""LM-ResNet is the network of its authors' code (2prime/LM-ResNet, commit ff49654)."""

import pytest
import torch

from resode.models import create
from tests.fidelity.training import EVALUATED, TRAINED, Golden, assert_close, take, trainer_of

UNITS = 3  # of each stage
AS_THEIRS = {
    "schedule": {"name": "constant"},
    "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0},
}


PREFIXES = {
    "conv1.": "stem.conv.",
    "downsample21.downsample.": "connectors.0.downsample.",
    "downsample31.downsample.": "connectors.1.downsample.",
    "bn.": "head.norm.",
    "fc.": "head.linear.",
}


def ours(name):
    """Our name of one of the authors' tensors; None: their network does not use it, or it is a k."""
    if name.startswith("blocks."):
        _, number, rest = name.split(".", 2)
        stage, unit = divmod(int(number), UNITS)
        if stage and unit == 0:
            return f"connectors.{stage - 1}.{rest}"
        kind = "statistics" if "running" in rest or "tracked" in rest else "controls"
        return f"stages.{stage}.{kind}.{unit - (stage > 0)}.{rest.replace('bn', 'norm')}"
    return next((own + name.removeprefix(old) for old, own in PREFIXES.items() if name.startswith(old)), None)


def of_theirs(tensors, difference=False):
    """Tensors of the authors by our names; k is 1 - theirs, so its gradient is theirs with the other sign."""
    named = {ours(name): tensor for name, tensor in tensors.items() if ours(name)}
    for stage in range(3):
        ks = [tensors.get(f"ks.{stage * UNITS + unit}") for unit in range(1, UNITS)]
        if all(k is not None for k in ks):
            k = torch.stack([k.squeeze() if k.numel() == 1 else k for k in ks])
            named[f"stages.{stage}.scheme.k"] = -k if difference else 1 - k
    return named


@pytest.mark.parametrize("k", ["step", "channel"])
def test_the_network_and_three_steps_are_the_authors(k):
    golden = Golden(f"lm-resnet-{k}")
    net = create("lm_resnet20", widths=(2, 4, 8), k=k).double()
    net.load_state_dict(of_theirs(golden.part("state")))
    inputs, labels = golden["images"].double() / 255 - 0.5, golden["labels"]
    with torch.no_grad():
        assert_close({"logits": net.eval()(inputs[0])}, {"logits": golden["logits"]}, EVALUATED)
    torch.nn.functional.cross_entropy(net.train()(inputs[0]), labels[0]).backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert_close(gradients, of_theirs(golden.part("gradient"), difference=True), EVALUATED)
    net.load_state_dict(of_theirs(golden.part("state")))  # without the statistics of this pass
    losses = take(trainer_of("lu2018/lm-resnet20", net, inputs, labels, **AS_THEIRS))
    assert losses == pytest.approx(golden["losses"].tolist(), rel=TRAINED)
    assert_close(net.state_dict(), of_theirs(golden.part("after")), TRAINED)
