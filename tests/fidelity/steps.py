"""The golden tensors of an original, and the same steps by our trainer."""

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

# Relative to the largest number of a tensor: float64, sums in other orders.
EVALUATED, TRAINED = 1e-10, 1e-8
AS_RECORDED = {
    "batch_size": 4, "augment.crop": 0, "augment.flip": False, "data.validation": 0,
    "precision": "fp32", "compile": False, "device": "cpu",
}  # fmt: skip


class Golden:
    """The tensors of a file; `part("after")` are those named `after.*`."""

    def __init__(self, name):
        path = Path(__file__).parents[1] / "golden" / f"{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.tensors["inputs"] = self.tensors["inputs"].double()

    def __getitem__(self, name):
        return self.tensors[name]

    def part(self, name):
        prefix = f"{name}."
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}


class InOrder:
    """Given batches in place of a loader's."""

    def __init__(self, batches):
        self.batches, self.steps = batches, len(batches)
        self.batch_size = self.batches[0].samples
        self.samples = self.steps * self.batch_size

    def batch(self, epoch, step):
        return self.batches[step]


def trainer_of(recipe, golden, net, *, normalised=False, **changes):
    """A trainer at the first step of a recipe, on the images of the original in its order.

    With `normalised`, on the inputs that the original made of them.
    """
    labels = golden["labels"].flatten()
    dataset = dataset_of((golden["images"].flatten(0, 1), labels))
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    setup = prepare(Experiment.from_recipe(recipe, AS_RECORDED | changes), net.float(), dataset=dataset)
    setup.module.double().load_state_dict(start)  # training is prepared in single precision alone
    if normalised:
        batches = [Batch(x, y) for x, y in zip(golden["inputs"], golden["labels"], strict=True)]
    else:
        every = np.arange(len(labels))
        options = {"batch_size": len(golden["labels"][0]), "dtype": torch.float64}
        batches = list(setup.data.loader(dataset.train, every, setup.where, **options))
    return Trainer(dataclasses.replace(setup, training=InOrder(batches)))


def take(trainer):
    """Take all steps of the trainer's loader; their losses, and the running statistics after each."""
    losses, statistics = [], []
    for _ in range(trainer.steps):
        before = trainer.sums[0].item()
        trainer.step()
        losses.append((trainer.sums[0].item() - before) / 4)
        state = trainer.module.state_dict()
        statistics.append({name: t.clone() for name, t in state.items() if ".running_" in name})
    return losses, statistics


def assert_close(found, expected, tolerance):
    """Tensors of the same names that agree, relative to the largest number of each."""
    assert set(found) == set(expected)
    errors = {
        name: ((found[name].double() - t).abs().max() / t.abs().max().clamp_min(1e-3)).item()
        for name, t in expected.items()
    }
    assert not {name: error for name, error in errors.items() if not error <= tolerance}


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
