"""Setup: what an experiment needs before its first step: data on the device, a network, all resolved.

What was left open in the experiment (`auto`, the normalisation, the number of classes) is decided here once;
the resolved experiment says it, and rebuilds the same set-up.
"""

import math
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resode import cost, durable, randomness, weights
from resode.data import Augmentation, Dataset, Images, Loader, channel_statistics, load, validation_split
from resode.errors import InputError, IntegrityError
from resode.models import create, created_as
from resode.training.experiment import Data, Experiment, Initial, Model
from resode.training.precision import choose_device, choose_precision, place


@dataclass(frozen=True)
class Setup:
    """A resolved experiment and all that its steps touch."""

    experiment: Experiment
    module: nn.Module
    device: torch.device
    dataset: Dataset
    training: Loader
    validation: Loader | None
    train_index: np.ndarray
    card: weights.Card
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Trainable and fixed parameters of the network."""
        return cost.parameters(self.module)

    def test(self) -> Loader | None:
        """The test images, where the data has any."""
        if self.dataset.test is None:
            return None
        return self._in_order(self.dataset.test, np.arange(len(self.dataset.test.labels)))

    def statistics_inputs(self, samples: int) -> Iterator[Tensor]:
        """Inputs of a fixed seeded subset of the training images, for the statistics of normalisations."""
        index = torch.as_tensor(self.train_index)
        subset = randomness.order(self.experiment.seed, 0, index)[:samples].sort().values
        for batch in self._in_order(self.dataset.train, subset.numpy()):
            yield batch.inputs

    def _in_order(self, images: Images, index: np.ndarray) -> Loader:
        preprocessing = self.card.preprocessing
        return Loader(
            images,
            index,
            batch_size=self.experiment.evaluation.batch_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            device=self.device,
        )

    def save_weights(self, module: nn.Module, path: Path, results: Mapping[str, Any] | None = None) -> None:
        """Write a weights file that says how it came about."""
        training = {**self.card.training, **(results or {})}
        weights.save(module, path, weights.Card(self.card.specification, self.card.preprocessing, training))

    def load_weights(self, module: nn.Module, path: Path) -> None:
        """Read the tensors of a weights file into `module`."""
        weights.load_into(module, path)

    def peak_memory(self) -> int:
        """Bytes: the allocator's peak on a GPU, the resident peak of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def prepare(experiment: Experiment, module: nn.Module | None = None) -> Setup:
    """Resolve an experiment: data, split, normalisation, device, precision, network.

    Args:
        experiment: as read from a recipe, or resolved already (then everything comes out the same).
        module: the network to train, as it is; left out, the experiment's model is built and initialised.

    Raises:
        InputError: data, model and weights that do not fit together.
        IntegrityError: the data is not what the resolved experiment was made with.
    """
    notes: list[str] = []
    device = choose_device(experiment.device)
    data = load(
        experiment.data.source,
        image_size=experiment.data.image_size,
        on_bad_image=experiment.data.on_bad_image,
    )
    if experiment.data.fingerprint not in (None, data.fingerprint):
        raise IntegrityError(
            f"{experiment.data.source}: the data has changed since this run began (content "
            f"{data.fingerprint[:12]}, was {experiment.data.fingerprint[:12]})"
        )
    train_index, validation_index = validation_split(data.train, experiment.data.validation, experiment.seed)
    experiment = _resolve_init(experiment, module)
    section = _resolve_data(experiment.data, data, train_index)
    precision, reason = choose_precision(experiment.precision, device)
    if experiment.precision == "auto":
        notes.append(f"precision {precision}: {reason}")
    model = _resolve_model(experiment, data) if module is None else model_of(module)
    experiment = experiment.replace(data=section, device=str(device), precision=precision, model=model)
    torch.manual_seed(experiment.seed)
    if module is None:
        assert model is not None
        module = create(model.name, **model.options)
        if experiment.init is not None:
            weights.load_into(module, Path(experiment.init.path))
    module = place(module, device)
    _check_outputs(module, data, device)

    height, width, channels = data.train.pixels.shape[1:]
    preprocessing = weights.Preprocessing(
        mean=section.mean or (), std=section.std or (), size=(height, width), channels=channels,
        classes=data.classes,
    )  # fmt: skip
    card = weights.Card(
        weights.Specification(model.name, model.options) if model else None,
        preprocessing,
        {"recipe": experiment.name, "data": section.source, "seed": experiment.seed},
    )

    def loader(index: np.ndarray, **options: Any) -> Loader:
        mean, std = preprocessing.mean, preprocessing.std
        return Loader(data.train, index, mean=mean, std=std, device=device, **options)

    training = loader(
        train_index,
        batch_size=experiment.batch_size,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        augmentation=Augmentation(**experiment.augment.model_dump()),
        seed=experiment.seed,
    )
    held_out = len(validation_index) > 0
    validation = loader(validation_index, batch_size=experiment.evaluation.batch_size) if held_out else None
    return Setup(experiment, module, device, data, training, validation, train_index, card, tuple(notes))


def model_of(module: nn.Module) -> Model | None:
    """The registered model that a module was created as; None for a module of the user's own."""
    created = created_as(module)
    return None if created is None else Model(name=created[0], **created[1])


def _resolve_init(experiment: Experiment, module: nn.Module | None) -> Experiment:
    """Take the network's options and the normalisation from the weights that training starts from."""
    init = experiment.init
    if init is None:
        return experiment
    path = Path(init.path)
    card = weights.read_card(path)
    digest = durable.sha256(path)
    if init.sha256 not in ("", digest):
        raise IntegrityError(f"{path}: the weights have changed since this run began")
    changes: dict[str, Any] = {"init": Initial(path=str(path), sha256=digest)}
    if module is None and card.specification is not None and experiment.model is not None:
        name = card.specification.name
        if name != experiment.model.name:
            raise InputError(
                f"{path}: holds a {name}, the recipe trains a {experiment.model.name}; "
                f"to train the file's network add --set model.name={name}"
            )
        changes["model"] = Model(name=name, **{**card.specification.options, **experiment.model.options})
    if experiment.data.mean is None and card.preprocessing is not None:
        normalisation = {"mean": card.preprocessing.mean, "std": card.preprocessing.std}
        changes["data"] = experiment.data.model_copy(update=normalisation)
    return experiment.replace(**changes)


def _resolve_data(section: Data, data: Dataset, train_index: np.ndarray) -> Data:
    """Fill in normalisation and fingerprint; check that they fit the images."""
    mean, std = section.mean, section.std
    if mean is None or std is None:
        measured = channel_statistics(data.train, train_index)
        mean, std = mean or measured[0], std or tuple(max(s, 1e-3) for s in measured[1])
    channels = data.train.pixels.shape[3]
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise InputError(
                f"data.{key}: {len(values)} numbers are given, the images have {channels} channels"
            )
    return section.model_copy(update={"mean": mean, "std": std, "fingerprint": data.fingerprint})


def _resolve_model(experiment: Experiment, data: Dataset) -> Model:
    """Fill in what the data decides: classes and input channels."""
    if experiment.model is None:
        raise InputError(
            f"{experiment.name}: 'model' is missing (`resode list models`), and no module is given"
        )
    found = {"classes": len(data.classes), "in_channels": int(data.train.pixels.shape[3])}
    options = experiment.model.options
    for key, value in found.items():
        if options.get(key, value) != value:
            raise InputError(
                f"model.{key}={options[key]} does not fit the data {data.name}, which has {value}; "
                "leave it out"
            )
    return Model(name=experiment.model.name, **{**options, **found})


@torch.no_grad()
def _check_outputs(module: nn.Module, data: Dataset, device: torch.device) -> None:
    """One image through the network: does it take this size, and give a logit for every class?"""
    height, width, channels = data.train.pixels.shape[1:]
    training = module.training
    module.eval()
    try:
        logits = module(torch.zeros(1, channels, height, width, device=device))
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"the network does not take the images of {data.name} ({channels}x{height}x{width}): {first}"
        ) from None
    finally:
        module.train(training)
    if logits.shape != (1, len(data.classes)):
        raise InputError(
            f"the network gives an output of shape {tuple(logits.shape)} for one image; "
            f"{data.name} has {len(data.classes)} classes"
        )
