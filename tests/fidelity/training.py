"""Golden tensors of an original, and steps of our own trainer on their images."""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from resode.data import Batch
from resode.data.images import Dataset, Images
from resode.training import Experiment
from resode.training.loop.step import Trainer
from resode.training.optim import optimizers
from resode.training.setup.preparation import prepare

GOLDEN = Path(__file__).parents[1] / "golden"


class Golden:
    """The tensors of one file; `part("after")` are those whose names begin with `after.`, without it."""

    def __init__(self, name):
        with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.about = file.metadata()

    def __getitem__(self, name):
        return self.tensors[name]

    def part(self, name):
        prefix = f"{name}."
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}


def trained(net, state, inputs, labels, **settings):
    """Train a network in float64 by steps of the trainer, one for each batch; returns their losses.

    The trainer begins in float32; the state is loaded after it has been prepared.
    """
    dataset = Dataset.of(
        "golden",
        tuple("abcdefghij"),
        Images.of(np.zeros((20, *inputs.shape[3:], 3), dtype=np.uint8), np.arange(20) % 10),
        None,
    )
    values = {"name": "golden", "epochs": 1, "batch_size": len(labels[0]), "precision": "fp32"}
    values |= {"compile": False, "device": "cpu", "schedule": {"name": "constant"}, **settings}
    experiment = Experiment.from_values(values, "golden")
    setup = prepare(experiment, net.float(), dataset=dataset)
    setup.module.double().load_state_dict(state)
    trainer = Trainer(setup)
    losses = []
    for step, (x, y) in enumerate(zip(inputs, labels, strict=True)):
        optimizers.set_learning_rate(trainer.optimizer, trainer.learning_rate(step))
        loss, _ = trainer.compute(Batch(x.contiguous(memory_format=torch.channels_last), y))
        losses.append(loss)
    return torch.stack(losses)


def assert_close(found, expected, relative):
    """Tensors by name agree to `relative` times the largest entry of each."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        size = tensor.abs().max().item() if tensor.numel() else 0.0
        torch.testing.assert_close(
            found[name],
            tensor,
            rtol=0,
            atol=relative * max(size, 1e-3),
            msg=lambda text, n=name: f"{n}: {text}",
        )
