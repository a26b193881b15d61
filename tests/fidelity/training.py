"""The trainer of a recipe, in float64 on given batches, against the golden tensors of an original."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from resode.data import Batch
from resode.data.given import dataset_of
from resode.training import Experiment
from resode.training.loop.step import Trainer
from resode.training.optim.schedules import learning_rate
from resode.training.setup.preparation import prepare

FOLDER = Path(__file__).parents[1] / "golden"
# Relative to the largest number of a tensor: float64, sums in other orders.
EVALUATED, TRAINED = 1e-10, 1e-8
AS_RECORDED = {
    "batch_size": 4, "augment.crop": 0, "augment.flip": False, "data.validation": 0,
    "precision": "fp32", "compile": False, "device": "cpu",
}  # fmt: skip


class Golden:
    """The tensors of a file, in float64 or integers; `part("after")` are those named `after.*`."""

    def __init__(self, name):
        with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.about = file.metadata()
        self.tensors = {key: t.double() if t.is_floating_point() else t for key, t in tensors.items()}

    def __getitem__(self, name):
        return self.tensors[name]

    def part(self, name):
        prefix = f"{name}."
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}


class InOrder:
    """Given batches in place of a loader's."""

    def __init__(self, batches):
        self.batches, self.steps, self.batch_size = batches, len(batches), batches[0].samples
        self.samples = self.steps * self.batch_size

    def batch(self, epoch, step):
        return self.batches[step]


def trainer_of(recipe, net, inputs, labels, *, classes=10, **changes):
    """A trainer at the first step of a recipe, with a batch of each of the inputs and labels.

    Inputs in uint8 are images, which the recipe scales; others enter the network as they are.
    """
    is_scaled = inputs.is_floating_point()
    images = (torch.zeros_like(inputs, dtype=torch.uint8) if is_scaled else inputs).flatten(0, 1)
    # A data set has images of every class.
    more = images[:1].expand(classes, *images.shape[1:])
    dataset = dataset_of((torch.cat([images, more]), torch.cat([labels.flatten(), torch.arange(classes)])))
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    setup = prepare(Experiment.from_recipe(recipe, AS_RECORDED | changes), net.float(), dataset=dataset)
    setup.module.double().load_state_dict(start)  # training is prepared in single precision alone
    if is_scaled:
        batches = [Batch(x, y) for x, y in zip(inputs, labels, strict=True)]
    else:
        options = {"batch_size": len(labels[0]), "dtype": torch.float64}
        batches = list(setup.data.loader(dataset.train, np.arange(labels.numel()), setup.where, **options))
    return Trainer(dataclasses.replace(setup, training=InOrder(batches)))


def take(trainer, after_each=lambda module: None):
    """Take the step of each batch, and call a function of the network after it; the losses."""
    losses = []
    for batch in trainer.setup.training.batches:
        before = trainer.sums[0].item()
        trainer.step()
        after_each(trainer.module)
        losses.append((trainer.sums[0].item() - before) / batch.samples)
    return losses


def assert_close(found, expected, tolerance):
    """Tensors of the same names that agree, relative to the largest number of each."""
    assert set(found) == set(expected)
    errors = {name: error(found[name], tensor) for name, tensor in expected.items()}
    assert not {name: far for name, far in errors.items() if not far <= tolerance}


def error(found, expected, least=1e-3):
    """The largest difference, relative to the largest number (or to `least`, if that is larger)."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return (found - expected).abs().max().item() / max(expected.abs().max().item(), least)


def rates(recipe):
    """The learning rate of each epoch of a recipe, the same in all of its steps."""
    experiment = Experiment.from_recipe(recipe)
    images = 50_000 - experiment.data.validation
    steps = -(-images // experiment.batch_size)
    of_steps = [
        learning_rate(experiment.schedule, experiment.optimizer.lr, k, experiment.epochs * steps, steps)
        for k in range(experiment.epochs * steps)
    ]
    table = np.array(of_steps).reshape(experiment.epochs, steps)
    assert (table == table[:, :1]).all()
    return table[:, 0]
