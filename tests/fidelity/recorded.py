"""Golden tensors of an original, and our trainer on the images that the original was given."""

import dataclasses
from pathlib import Path

import numpy as np
from safetensors import safe_open

from resode.data import Batch
from resode.data.images import Dataset, Images
from resode.training import Experiment
from resode.training.loop.step import Trainer
from resode.training.setup.loss import record_of
from resode.training.setup.preparation import prepare

FOLDER = Path(__file__).parents[1] / "golden"
EVALUATED, TRAINED = (
    1e-10,
    1e-8,
)  # relative to the largest number of a tensor: float64 in other orders of sums
AS_RECORDED = {
    "epochs": 1, "batch_size": 4, "augment.crop": 0, "augment.flip": False, "data.validation": 0,
    "schedule": {"name": "constant"}, "precision": "fp32", "compile": False, "device": "cpu",
}  # fmt: skip


class Golden:
    """The tensors of a file; `part("after")` are those named `after.*`."""

    def __init__(self, name):
        with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.about = file.metadata()

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


def trainer_of(recipe, net, golden, loss=None, **settings):
    """A trainer at the first step of a recipe, on the recorded images in float64."""
    classes = tuple("abcdefghij"[: net.classes])
    pixels = np.zeros((2 * net.classes, *golden["images"].shape[3:], 3), dtype=np.uint8)
    images = Images.of(pixels, np.arange(len(pixels)) % net.classes)
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    own = {} if loss is None else {"loss": record_of(loss)}
    experiment = Experiment.from_recipe(recipe, AS_RECORDED | own | settings)
    setup = prepare(experiment, net.float(), dataset=Dataset.of("golden", classes, images, None), loss=loss)
    setup.module.double().load_state_dict(start)  # training is prepared in single precision alone
    batches = [Batch(x, y) for x, y in zip(golden["images"], golden["labels"], strict=True)]
    return Trainer(dataclasses.replace(setup, training=InOrder(batches)))


def assert_close(found, expected, tolerance):
    """Tensors of the same names that agree, relative to the largest number of each."""
    assert set(found) == set(expected)
    errors = {name: error(found[name], tensor) for name, tensor in expected.items()}
    assert not {name: far for name, far in errors.items() if not far <= tolerance}


def error(found, expected):
    """The largest difference, relative to the largest number."""
    assert found.shape == expected.shape
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-3)).item()
