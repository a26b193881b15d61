"""Setup: what an experiment needs before its first step: data on the device, a network, all resolved.

What was left open in the experiment (`auto`, the normalisation, the number of classes) is decided here once;
the resolved experiment says it, and rebuilds the same set-up.
"""

import math
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resode import cost, randomness, weights
from resode.data import (
    Augmentation,
    Dataset,
    Images,
    Loader,
    channel_statistics,
    hub,
    load,
    validation_split,
)
from resode.errors import InputError, IntegrityError
from resode.memory import Shape
from resode.models import DynamicNet, create, name_and_options
from resode.models.budget import set_gradients
from resode.training.loop.cuda_graphs import hindrance
from resode.training.process.device import choose_device, place
from resode.training.process.distributed import SINGLE, World
from resode.training.recipe.experiment import Data, Experiment, Model
from resode.training.setup.changes import changed
from resode.training.setup.checks import (
    check_model,
    check_network,
    check_precision,
    check_size,
    check_smallest_batch,
    refuse_misfits,
)
from resode.training.setup.form import choose
from resode.training.setup.memory import check_given, described, fitted
from resode.training.setup.warm_start import initial_optimizer_state, resolve_init


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
    optimizer_state: Mapping[str, Tensor]
    world: World = SINGLE

    @property
    def parameters(self) -> int:
        """Trainable and fixed parameters of the network."""
        return cost.parameters(self.module)

    def test(self) -> Loader | None:
        """The test images, where the data has any and the run may see them."""
        if self.dataset.test is None or not self.experiment.evaluation.test:
            return None
        return self._in_order(self.dataset.test, np.arange(len(self.dataset.test.labels)), self.world)

    def statistics_inputs(self, samples: int) -> Iterator[Tensor]:
        """Inputs of a fixed seeded subset of the training images, in batches of one size, for statistics."""
        whole, seed = self.experiment.evaluation.batch_size, self.experiment.seed
        drawn = statistics_index(self.dataset.train, self.train_index, seed, samples, whole)
        for batch in self._in_order(self.dataset.train, drawn):
            yield batch.inputs

    def _in_order(self, images: Images, index: np.ndarray, world: World = SINGLE) -> Loader:
        preprocessing = self.card.preprocessing
        return Loader(
            images,
            index,
            batch_size=self.experiment.evaluation.batch_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            device=self.device,
            part=(world.rank, world.size),
        )

    def save_weights(self, module: nn.Module, path: Path, results: Mapping[str, Any] | None = None) -> None:
        """Write a weights file that says how it came about."""
        training = {**self.card.training, **(results or {})}
        weights.save(module, path, weights.Card(self.card.specification, self.card.preprocessing, training))

    def peak_memory(self) -> int:
        """Bytes: the allocator's peak on a GPU, the resident peak of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def statistics_index(
    images: Images, index: np.ndarray, seed: int, samples: int, batch_size: int
) -> np.ndarray:
    """A fixed seeded subset of the images, in whole batches where there is more than one."""
    count = min(samples, len(index))
    count -= count % batch_size if count > batch_size else 0
    by_content = index[np.argsort(images.digests[index], kind="stable")]
    drawn = randomness.order(seed, 0, torch.arange(len(by_content)), "subset")[:count]
    chosen: np.ndarray = by_content[drawn.numpy()]
    return chosen


@dataclass(frozen=True)
class TrainingInputs:
    """Inputs of a network from training images: how many, of which data, in batches."""

    source: str
    samples: int
    batches: Iterator[Tensor]


def training_inputs(
    experiment: Experiment, preprocessing: weights.Preprocessing, samples: int, device: torch.device
) -> TrainingInputs:
    """A fixed subset of an experiment's training images, as inputs of a network that is trained already.

    Args:
        experiment: says which images are held out.
        preprocessing: of the network.
        samples: how many images at most.
        device: where the inputs go.

    Raises:
        InputError: images of another size or number of channels.
    """
    data = read_data(experiment.data)
    height, width, channels = data.train.pixels.shape[1:]
    if (channels, height, width) != (preprocessing.channels, *preprocessing.size):
        wanted = "x".join(map(str, (preprocessing.channels, *preprocessing.size)))
        raise InputError(
            f"{experiment.data.source}: images of {channels}x{height}x{width}, the network takes {wanted}"
        )
    index, _ = validation_split(data.train, experiment.data.validation, experiment.seed)
    batch_size = experiment.evaluation.batch_size
    drawn = statistics_index(data.train, index, experiment.seed, samples, batch_size)
    loader = Loader(
        data.train, drawn, batch_size=batch_size, mean=preprocessing.mean, std=preprocessing.std,
        device=device, dtype=preprocessing.dtype,
    )  # fmt: skip
    return TrainingInputs(experiment.data.source, len(drawn), (batch.inputs for batch in loader))


def prepare(
    experiment: Experiment,
    module: nn.Module | None = None,
    tell: Callable[[str], None] = lambda text: None,
    world: World = SINGLE,
) -> Setup:
    """Resolve an experiment: data, split, normalisation, device, precision, network.

    Args:
        experiment: as read from a recipe, or resolved already (then everything comes out the same).
        module: the network to train, as it is; left out, the experiment's model is built and initialised.
        tell: is told what takes a while.
        world: the processes that train together; each takes its part of every batch.

    Raises:
        InputError: data, model and weights that do not fit together.
        IntegrityError: the data is not what the resolved experiment was made with.
    """
    device = choose_device(experiment.device)
    if module is not None or experiment.init is None:
        check_model(experiment, module)  # before any data is read
    tell(f"reading {experiment.data.source}")
    data = read_data(experiment.data)
    train_index, validation_index = validation_split(data.train, experiment.data.validation, experiment.seed)
    experiment, notes = resolve_init(experiment, module, data)
    section = _resolve_data(experiment.data, data, train_index)
    model = _resolve_model(experiment, data) if module is None else model_of(module)
    experiment = experiment.replace(data=section, device=str(device), model=model)
    if module is None and experiment.init is not None:
        check_model(experiment, None)
    module = place(_built(experiment, module), device)
    shape = image_shape(data)
    for size in (None, *(part.size for part in experiment.sizes)):
        seen = check_size(shape, size, data.name)
        check_network(module, seen, len(data.classes), data.name, device)
        check_smallest_batch(module, seen, len(train_index), experiment.batch_size, device, world)
    experiment, lines = _resolve_form(experiment, module, shape, device, len(train_index))
    notes += lines
    experiment, lines = _resolve_gradients(experiment, module, data)
    notes += lines
    if experiment.cuda_graph is True and (why := hindrance(module, device, world.size)):
        notes += [f"warning: cuda_graph: true has no effect here: {why}"]
    optimizer_state = initial_optimizer_state(experiment, module)
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
        part = world.rank, world.size
        return Loader(data.train, index, mean=mean, std=std, device=device, part=part, **options)

    training = loader(
        train_index,
        batch_size=experiment.batch_size,
        dtype=torch.bfloat16 if experiment.precision == "bf16" else torch.float32,
        augmentation=Augmentation(**experiment.augment.model_dump()),
        seed=experiment.seed,
    )
    if isinstance(module, DynamicNet):
        notes += [f"warning: {line}" for line in module.warnings(int(height), int(width))]
    held_out = len(validation_index) > 0
    validation = loader(validation_index, batch_size=experiment.evaluation.batch_size) if held_out else None
    return Setup(
        experiment, module, device, data, training, validation, train_index, card, tuple(notes),
        optimizer_state, world,
    )  # fmt: skip


def read_data(section: Data) -> Dataset:
    """The data of an experiment, if it is still what the run began with.

    Raises:
        InputError: no such data, or a single class.
        IntegrityError: the data has changed.
    """
    data = load(section.source, image_size=section.image_size, on_bad_image=section.on_bad_image)
    if len(data.classes) < 2:
        raise InputError(f"{section.source}: has a single class ({data.classes[0]}); two are the least")
    if section.fingerprint not in (None, data.fingerprint):
        raise IntegrityError(
            f"{section.source}: the data has changed since this run began (content "
            f"{data.fingerprint[:12]}, was {section.fingerprint[:12]})"
        )
    return data


def _built(experiment: Experiment, module: nn.Module | None) -> nn.Module:
    """The network with its initial weights; the seed decides them where none are given."""
    torch.manual_seed(experiment.seed)
    if module is None:
        assert experiment.model is not None
        module = create(experiment.model.name, **experiment.model.options)
    if experiment.init is not None:
        weights.load_into(module, experiment.init.path, new_head=experiment.init.new_head)
    return module


def model_of(module: nn.Module) -> Model | None:
    """The registered model that a module was created as; None for one of the user's own, or edited since."""
    created = name_and_options(module)
    if created is None:
        return None
    with torch.device("meta"):
        original = create(created[0], **created[1]).state_dict()
    if weights.mismatches(original, module.state_dict()):
        return None
    return Model(name=created[0], **created[1])


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
    source = data.name if section.source.startswith(hub.PREFIX) else section.source  # with its commit
    found = {"source": source, "mean": mean, "std": std, "fingerprint": data.fingerprint}
    return section.model_copy(update=found)


def image_shape(data: Dataset) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    height, width, channels = data.train.pixels.shape[1:]
    return int(channels), int(height), int(width)


def _resolve_form(
    experiment: Experiment, module: nn.Module, shape: Shape, device: torch.device, samples: int
) -> tuple[Experiment, list[str]]:
    """Choose precision and compilation, where they are left open."""
    batch = experiment.batch_size if experiment.memory_budget is None else 2  # a budget is chosen for later
    form = choose(
        module, shape, precision=experiment.precision, compile_=experiment.compile,
        batch=batch, images=experiment.epochs * samples, device=device,
    )  # fmt: skip
    notes = [f"{form}: {form.reason}"] if form.reason else []
    return experiment.replace(precision=form.precision, compile=form.compile), notes


def _resolve_gradients(
    experiment: Experiment, module: nn.Module, data: Dataset
) -> tuple[Experiment, list[str]]:
    """Give the network the gradient methods that the memory budget chose, or chooses now.

    Raises:
        InputError: nothing meets the budget, now or after a change on the way.
    """
    shape, lines = image_shape(data), []
    if experiment.gradients is not None:
        set_gradients(module, experiment.gradients)
        check_precision(module)
        check_given(experiment, module, shape)
    elif experiment.memory_budget is not None:
        chosen, line = fitted(experiment, module, shape)
        set_gradients(module, chosen.methods)
        experiment, lines = experiment.replace(gradients=described(chosen.methods)), [line]
    if experiment.memory_budget is not None:
        network = module
        for change in experiment.changes:
            network, _ = changed(network, change)
            fitted(experiment, network, shape)
    return experiment, lines


def _resolve_model(experiment: Experiment, data: Dataset) -> Model:
    """Fill in what the data decides: classes and input channels."""
    if experiment.model is None:
        raise InputError(
            f"{experiment.name}: 'model' is missing (`resode list models`), and no module is given"
        )
    found = {"classes": len(data.classes), "in_channels": int(data.train.pixels.shape[3])}
    options = experiment.model.options
    refuse_misfits(options, found, data.name)
    return Model(name=experiment.model.name, **{**options, **found})
