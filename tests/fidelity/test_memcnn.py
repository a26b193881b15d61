"""memcnn's RevNet: its network and its training, against its own numbers.

`tests/golden/make/memcnn.py` ran it in float64, on inputs that its own loaders made.
"""

import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resode import create
from tests.fidelity.training import EVALUATED, TRAINED, Golden, assert_close, rates, take, trainer_of

UNIT = {"bn1": "norm1", "bn2": "norm2", "conv1": "conv1", "conv2": "conv2"}
COUPLED = r"layer(\d)\.(\d)\.revblock\._fn\.([FG])m\.(\w+)\.(.*)"


def ours(name):
    """Our name of a tensor of memcnn's RevNet."""
    if coupled := re.fullmatch(COUPLED, name):
        layer, unit, part, module, tensor = coupled.groups()
        stage = 0 if (layer, unit) == ("1", "0") else int(layer)
        step = int(unit) - (stage > 0)
        kind = ("controls", "statistics")["running" in tensor or "tracked" in tensor]
        place = f"{step}.{part}" if kind == "controls" else f"{2 * step + 'FG'.index(part)}"
        return f"stages.{stage}.{kind}.{place}.{UNIT[module]}.{tensor}"
    connector = re.fullmatch(r"layer([23])\.0\.(?:basicblock_sub\.)?(.*)", name)
    if connector:
        return f"connectors.{int(connector[1]) - 1}.{connector[2]}"
    places = {"conv1": "stem.conv", "bn1": "stem.norm", "bn_final": "head.norm", "fc": "head.linear"}
    place, _, tensor = name.partition(".")
    return f"{places[place]}.{tensor}"


@pytest.fixture
def golden():
    return Golden("memcnn-revnet38")


def part(golden, name):
    return {ours(key): tensor for key, tensor in golden.part(name).items()}


def network(golden):
    net = create("revnet38", widths=(4, 8, 12)).double()
    net.load_state_dict(part(golden, "state"))
    return net


def test_logits_and_gradients(golden):
    net = network(golden)
    with torch.no_grad():
        assert_close({"": net.eval()(golden["inputs"][0])}, {"": golden["logits"]}, EVALUATED)
    F.cross_entropy(net.train()(golden["inputs"][0]), golden["labels"][0]).backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert_close(gradients, part(golden, "gradient"), EVALUATED)


def test_three_steps_of_the_recipe(golden):
    """Loss, rate, momentum, weight decay of all parameters, reversible gradients."""
    trainer = trainer_of("gomez2017/revnet38", network(golden), golden["inputs"], golden["labels"])
    assert [trainer.learning_rate(step) for step in range(3)] == pytest.approx(golden["rates"].tolist())
    statistics = []  # after each step

    def noted(net):
        state = net.state_dict()
        statistics.append({name: t.clone() for name, t in state.items() if ".running_" in name})

    losses = take(trainer, noted)
    assert losses == pytest.approx(golden["losses"].tolist(), rel=TRAINED)
    after = part(golden, "after")
    parameters = dict(trainer.module.named_parameters())
    assert_close(parameters, {name: after[name] for name in parameters}, TRAINED)
    start = {name: t for name, t in part(golden, "state").items() if ".running_" in name}
    expected = {name: _moved(name, start, statistics, after) for name in start}
    assert_close(expected, {name: after[name] for name in start}, TRAINED)


def _moved(name, start, statistics, after):
    """A running statistic that moves several times a step towards that of the batch.

    memcnn runs a coupled unit three times in a step: forward, to invert it, and to differentiate it (twice,
    if it keeps its input). We move running statistics once.
    """
    times = int(after[re.sub(r"running_\w+$", "num_batches_tracked", name)]) // len(statistics)
    assert times in ((2, 3) if "stages" in name else (1,))
    before, theirs = start[name], start[name]
    for step in statistics:
        of_the_batch = (step[name] - 0.9 * before) / 0.1
        theirs = 0.9**times * theirs + (1 - 0.9**times) * of_the_batch
        before = step[name]
    return theirs


def test_the_rates_in_each_epoch():
    """A tenth from iteration 40,000 on, a hundredth from 60,000 on: of 500 an epoch."""
    np.testing.assert_allclose(rates("gomez2017/revnet38"), np.repeat([0.1, 0.01, 0.001], [80, 40, 40]))
