"""The DynamicBlocks toolbox: its networks and its default training, against its own numbers.

`tests/golden/make/dynamicblocks.py` ran the toolbox in float64. Networks are imported from its state_dicts;
the three training steps are those of the recipe dynamicblocks/rk4, on the same four images.
"""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from resode.data.given import dataset_of
from resode.interop import convert, from_dynamicblocks
from resode.interop.dynamicblocks import LAYERS, TRANSITIONS
from resode.interop.formats import rename
from resode.training import Experiment
from resode.training.loop.step import Trainer
from resode.training.optim.schedules import learning_rate
from resode.training.setup.preparation import prepare

FILES = sorted((Path(__file__).parents[1] / "golden").glob("dynamicblocks-*.safetensors"))
EVALUATED, TRAINED = (
    1e-10,
    1e-8,
)  # relative to the largest number of a tensor: float64 in other orders of sums
# The toolbox's learning rate is 0.1 in single precision.
ON_THE_SAME_IMAGES = {
    "batch_size": 4, "augment.crop": 0, "augment.flip": False, "data.validation": 0,
    "optimizer.lr": float(np.float32(0.1)),
    "precision": "fp32", "compile": False, "device": "cpu",
}  # fmt: skip

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem.removeprefix("dynamicblocks-"))


def opened(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = {name: json.loads(value) for name, value in file.metadata().items()}
    return tensors, about


def of(prefix, tensors):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def imported(path):
    """The network of a golden file, read as `resode import` does, and the header of its weights."""
    conversion = convert("dynamicblocks", path, model="dynamicblocks")
    return conversion.module, conversion.card


def after_training(tensors, about):
    """The toolbox's network after its three steps."""
    state = of("state.", tensors) | of("after.", tensors)
    if about["layer"] == "parabolic":  # K is stored three times
        for name in state:
            parent, _, last = name.rpartition(".conv")
            if ".controlLayers." in name and last in (".weight", "t.weight"):
                state[name] = state[f"{parent}.weight"]
    options = {key: about[key] for key in ("scheme", "layer", "states", "controls", "norm")}
    return from_dynamicblocks(state, widths=(3, 4, 5), **options)


def difference(found, expected, largest=None):
    """The largest difference, relative to the largest number."""
    largest = expected.abs().max() if largest is None else largest
    return ((found - expected).abs().max() / largest).item()


def assert_close(found, expected, tolerance):
    assert difference(found, expected) <= tolerance


def test_every_scheme_layer_and_norm_has_a_file():
    kinds = [tuple(path.stem.split("-")[1:]) for path in FILES]
    every = {"rk1", "rk4"}, {"parabolic", "double", "preact_double"}, {"tv", "batch"}
    assert tuple(map(set, zip(*kinds, strict=True))) == every
    assert len(kinds) == 8


@every_file
def test_logits_and_gradients_in_evaluation(path):
    tensors, about = opened(path)
    net, _ = imported(path)
    x = tensors["input"].requires_grad_()
    logits = net(x)
    assert_close(logits, tensors["logits"], EVALUATED)
    F.cross_entropy(logits, tensors["labels"]).backward()
    assert_close(x.grad, tensors["input_grad"], EVALUATED)
    gradients = rename(of("grad.", tensors), {**TRANSITIONS, **LAYERS[about["layer"]]})
    found = {name: p.grad for name, p in net.named_parameters()}
    largest = max(g.abs().max() for g in gradients.values())  # that of a bias before a norm is rounding
    for name, expected in gradients.items():
        assert difference(found.pop(name), expected, largest) <= EVALUATED, name
    assert not any(rest.any() for rest in found.values())  # nodes that rk1 never touches have none there


@every_file
def test_images_are_scaled_as_the_toolbox_does(path):
    tensors, _ = opened(path)
    _, card = imported(path)
    section = Experiment.from_recipe("dynamicblocks/rk4").data
    for mean, std in ((card.preprocessing.mean, card.preprocessing.std), (section.mean, section.std)):
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
        assert_close((tensors["images"] / 255.0 - mean) / std, tensors["input"].float(), 1e-6)


def trainer_of(path, **changes):
    """A trainer at the first step of dynamicblocks/rk4 on the images and the network of a golden file."""
    tensors, _ = opened(path)
    net, _ = imported(path)
    one_each = torch.arange(10, dtype=torch.uint8)  # a data set has images of every class
    images = torch.cat([tensors["images"], one_each[:, None, None, None].expand(-1, 3, 8, 8)])
    dataset = dataset_of((images, torch.cat([tensors["labels"], one_each.long()])))
    experiment = Experiment.from_recipe("dynamicblocks/rk4", ON_THE_SAME_IMAGES | changes)
    setup = prepare(experiment, copy.deepcopy(net).float(), dataset=dataset)
    loader = setup.data.loader(dataset.train, np.arange(4), setup.where, batch_size=4, dtype=torch.float64)
    assert_close(loader.batch(0, 0).inputs.sum(0), tensors["input"].sum(0), EVALUATED)
    extension = setup.extension.of(net)
    return Trainer(dataclasses.replace(setup, module=net, extension=extension, training=loader))


def steps(trainer, count):
    """Losses of some steps, each an epoch of one batch."""
    losses = []
    for _ in range(count):
        trainer.step()
        losses.append(trainer.sums[0].item() / 4)
        trainer.sums.zero_()
        trainer.position.epoch, trainer.position.step = trainer.position.epoch + 1, 0
    return losses


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
    tensors, about = opened(path)
    trainer = trainer_of(path)
    losses = steps(trainer, len(tensors["losses"]))
    assert losses == pytest.approx(tensors["losses"].tolist(), rel=TRAINED)
    wrong = {n: d for n, d in differences(trainer, after_training(tensors, about)).items() if d > TRAINED}
    assert not wrong


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
    trainer = trainer_of(path, **changes)
    steps(trainer, 3)
    assert max(differences(trainer, after_training(*opened(path))).values()) > 1e-5


def test_the_rates_are_those_of_the_toolbox_in_each_epoch():
    experiment = Experiment.from_recipe("dynamicblocks/rk4")
    expected = opened(FILES[0])[0]["learning_rates"].tolist()
    assert experiment.epochs == len(expected)
    assert (40000, experiment.batch_size) == (50000 - experiment.data.validation, 125)
    of_an_epoch = 40000 // experiment.batch_size
    for epoch, rate in enumerate(expected):
        for step in (0, of_an_epoch - 1):
            found = learning_rate(
                experiment.schedule, experiment.optimizer.lr, epoch * of_an_epoch + step,
                experiment.epochs * of_an_epoch, of_an_epoch,
            )  # fmt: skip
            assert found == pytest.approx(rate, rel=1e-7), (epoch, step)  # in single precision there
