"""The DynamicBlocks toolbox: its networks and its default training, against its own numbers.

`tests/golden/make/dynamicblocks.py` ran the toolbox in float64. Networks are imported from its state_dicts;
the three training steps are those of the recipe dynamicblocks/rk4, on the same four images.
"""

import json

import pytest
import torch
from torch.nn import functional as F

from resode.interop import convert, from_dynamicblocks
from resode.interop.dynamicblocks import LAYERS, TRANSITIONS
from resode.interop.formats import rename
from resode.training import Experiment
from tests.fidelity.training import EVALUATED, FOLDER, TRAINED, Golden, error, rates, take, trainer_of

FILES = sorted(FOLDER.glob("dynamicblocks-*.safetensors"))
LR = torch.tensor(0.1).item()  # the toolbox's learning rate is 0.1 in single precision

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem.removeprefix("dynamicblocks-"))


def opened(path):
    golden = Golden(path.stem)
    return golden, {name: json.loads(value) for name, value in golden.about.items()}


def imported(path):
    """The network of a golden file, read as `resode import` does, and the header of its weights."""
    conversion = convert("dynamicblocks", path, model="dynamicblocks")
    return conversion.module, conversion.card


def after_training(golden, about):
    """The toolbox's network after its three steps."""
    state = golden.part("state") | golden.part("after")
    if about["layer"] == "parabolic":  # K is stored three times
        for name in state:
            parent, _, last = name.rpartition(".conv")
            if ".controlLayers." in name and last in (".weight", "t.weight"):
                state[name] = state[f"{parent}.weight"]
    options = {key: about[key] for key in ("scheme", "layer", "states", "controls", "norm")}
    return from_dynamicblocks(state, widths=(3, 4, 5), **options)


def difference(found, expected, least=0.0):
    """The largest difference, relative to the largest number, however small."""
    return error(found, expected, least)


def test_every_scheme_layer_and_norm_has_a_file():
    kinds = [tuple(path.stem.split("-")[1:]) for path in FILES]
    every = {"rk1", "rk4"}, {"parabolic", "double", "preact_double"}, {"tv", "batch"}
    assert tuple(map(set, zip(*kinds, strict=True))) == every
    assert len(kinds) == 8


@every_file
def test_logits_and_gradients_in_evaluation(path):
    golden, about = opened(path)
    net, _ = imported(path)
    x = golden["input"].requires_grad_()
    logits = net(x)
    assert difference(logits, golden["logits"]) <= EVALUATED
    F.cross_entropy(logits, golden["labels"]).backward()
    assert difference(x.grad, golden["input_grad"]) <= EVALUATED
    gradients = rename(golden.part("grad"), {**TRANSITIONS, **LAYERS[about["layer"]]})
    found = {name: p.grad for name, p in net.named_parameters()}
    largest = max(g.abs().max() for g in gradients.values())  # that of a bias before a norm is rounding
    for name, expected in gradients.items():
        assert difference(found.pop(name), expected, largest) <= EVALUATED, name
    assert not any(rest.any() for rest in found.values())  # nodes that rk1 never touches have none there


@every_file
def test_images_are_scaled_as_the_toolbox_does(path):
    golden, _ = opened(path)
    _, card = imported(path)
    section = Experiment.from_recipe("dynamicblocks/rk4").data
    for mean, std in ((card.preprocessing.mean, card.preprocessing.std), (section.mean, section.std)):
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
        assert difference((golden["images"] / 255.0 - mean) / std, golden["input"]) <= 1e-6


def begun(path, **changes):
    """A trainer at the first step of dynamicblocks/rk4, with the toolbox's batch three times."""
    golden, _ = opened(path)
    net, _ = imported(path)
    images, labels = (golden[name].expand(3, *golden[name].shape) for name in ("images", "labels"))
    trainer = trainer_of("dynamicblocks/rk4", net, images, labels, **{"optimizer.lr": LR} | changes)
    for batch in trainer.setup.training.batches:
        assert difference(batch.inputs, golden["input"]) <= EVALUATED
    return trainer


def differences(trainer, expected):
    """The largest difference of each tensor of the state, relative to its largest number."""
    unused = {f"stages.{b}.controls.{j}." for b, block in enumerate(expected.stages) for j in block.unused}
    found = trainer.module.state_dict()
    return {
        name: difference(found[name], t)
        for name, t in expected.state_dict().items()
        if t.is_floating_point() and not any(map(name.startswith, unused))
    }


@every_file
def test_three_steps_of_the_recipe_are_those_of_the_toolbox(path):
    """Scaling, loss, momentum, weight decay, clamping and running statistics."""
    golden, about = opened(path)
    trainer = begun(path)
    assert take(trainer) == pytest.approx(golden["losses"].tolist(), rel=TRAINED)
    found = differences(trainer, after_training(golden, about))
    assert not {name: far for name, far in found.items() if not far <= TRAINED}


@pytest.mark.parametrize(
    "changes",
    [
        {"box": None},
        {"box": 0.5},
        {"box.convolutions": None},
        {"box.norms": None},
        {"box.linear": None},
        {"optimizer.decay_biases": None},
        {"optimizer.decay_norms": True},
    ],
    ids=str,
)
def test_each_option_of_the_recipe_counts(changes):
    """The negative control: the recipe without it trains otherwise."""
    path = next(path for path in FILES if path.stem.endswith("rk4-parabolic-batch"))
    trainer = begun(path, **changes)
    take(trainer)
    assert max(differences(trainer, after_training(*opened(path))).values()) > 1e-5


def test_the_rates_are_those_of_the_toolbox_in_each_epoch():
    experiment = Experiment.from_recipe("dynamicblocks/rk4")
    expected = opened(FILES[0])[0]["learning_rates"].tolist()
    assert experiment.epochs == len(expected)
    assert (40000, experiment.batch_size) == (50000 - experiment.data.validation, 125)
    assert rates("dynamicblocks/rk4") == pytest.approx(expected, rel=1e-7)  # in single precision there
