"""Preparation: an experiment resolved into all that its steps need: data on the device, and a network.

What an experiment leaves open (`auto`, the normalisation, the number of classes) is decided here once. The
resolved experiment records the decisions, and prepares to the same set-up again.
"""

import dataclasses
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resode import cost, weights
from resode.blocks import adaptive_solvers
from resode.data import Augmentation, Dataset, Loader, sources
from resode.memory import Shape
from resode.models import DynamicNet, models, name_and_options
from resode.training.process.device import choose_device, place
from resode.training.process.distributed import SINGLE, World
from resode.training.recipe.experiment import Experiment
from resode.training.setup.changes import Change, Changed
from resode.training.setup.checks import check_images, check_statistics
from resode.training.setup.data import TrainingData, statistics_index
from resode.training.setup.execution import cuda_graph_obstacle
from resode.training.setup.extension import DynamicExtension, Extension, ExtensionSettings
from resode.training.setup.form import Form, choose
from resode.training.setup.loss import Loss, checked
from resode.training.setup.memory import StepMemory
from resode.training.setup.network import Network
from resode.training.setup.placement import Placement
from resode.training.setup.warm_start import StartingPoint, read_warm_start


@dataclass(frozen=True)
class Setup:
    """A resolved experiment and all that its steps touch.

    Args:
        experiment: with nothing left open.
        module: the network, on the device.
        extension: what the network adds to a step.
        memory: what the memory of a step depends on.
        where: the device, and the ranks that train together.
        data: the images.
        training: loader of the training images.
        validation: loader of the images held out; None: there are none.
        card: the header of weights files.
        notes: what the user should know.
        optimizer_state: to begin with, as `<state>/<parameter>` -> tensor.
        loss: a function of the user's to minimise; None: cross-entropy.
    """

    experiment: Experiment
    module: nn.Module
    extension: Extension
    memory: StepMemory
    where: Placement
    data: TrainingData
    training: Loader
    validation: Loader | None
    card: weights.Card
    notes: tuple[str, ...]
    optimizer_state: Mapping[str, Tensor]
    loss: Loss | None = None

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.where.device

    @property
    def world(self) -> World:
        """The ranks that train together."""
        return self.where.world

    @property
    def parameters(self) -> int:
        """Trainable and fixed parameters of the network."""
        return cost.parameters(self.module)

    def test(self) -> Loader | None:
        """Loader of the test images; None: the data has none, or the run may not use them."""
        section = self.experiment.evaluation
        return self.data.test_loader(self.where, section.batch_size) if section.test else None

    def statistics_inputs(self, samples: int) -> Iterator[Tensor]:
        """Inputs of a fixed seeded subset of the training images, in batches of one size, for statistics."""
        images, batch_size = self.data.dataset.train, self.experiment.evaluation.batch_size
        chosen = statistics_index(images, self.data.train_index, self.experiment.seed, samples, batch_size)
        for batch in self.data.loader(images, chosen, Placement(self.device), batch_size=batch_size):
            yield batch.inputs

    def changed(self, change: Change) -> tuple["Setup", Changed]:
        """The set-up after a change of the network, and how tensors are transferred to it."""
        made = self.extension.changed(change)
        module, created = place(made.module, self.device), name_and_options(made.module)
        specification = weights.Specification(*created) if created else None
        card = dataclasses.replace(self.card, specification=specification)
        extension = self.extension.of(module)
        return dataclasses.replace(self, module=module, extension=extension, card=card), made

    def save_weights(self, module: nn.Module, path: Path, results: Mapping[str, Any] | None = None) -> None:
        """Write a weights file with its origin in the header."""
        weights.save(module, path, self.card_of(results or {}))

    def card_of(self, results: Mapping[str, Any]) -> weights.Card:
        """The header of weights with results of their training."""
        training = {**self.card.training, **results}
        return weights.Card(self.card.specification, self.card.preprocessing, training)

    def peak_memory(self) -> int:
        """Peak memory in bytes: of the allocator on a GPU, the resident set of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def prepare(
    experiment: Experiment,
    module: nn.Module | None = None,
    on_message: Callable[[str], None] = lambda text: None,
    world: World = SINGLE,
    dataset: Dataset | None = None,
    loss: Loss | None = None,
) -> Setup:
    """Resolve an experiment: data, network, precision and compilation, memory.

    Args:
        experiment: as read from a recipe, or resolved already (then nothing changes).
        module: the network to train, as it is; default: the experiment's model, built and initialised.
        on_message: called with a line before what takes a while.
        world: the processes that train together; each takes its share of every batch.
        dataset: the images, where the program holds them; default: read from the experiment's source.
        loss: (logits, labels) -> scalar, where the experiment says that it is the user's.

    Raises:
        InputError: data, model, weights and settings that do not fit together.
        IntegrityError: the data is not what the resolved experiment was made with.
    """
    where = Placement(choose_device(experiment.device), world)
    asked = experiment.model if module is None else None
    start = read_warm_start(experiment.init, asked, experiment.optimizer)
    network = Network(
        module, start.model, start.section, experiment.seed, experiment.name, experiment.plugins
    )
    settings = ExtensionSettings(experiment.smoothness, experiment.box, experiment.changes)
    settings.check(network.abstract())  # before any data is read
    if dataset is None:
        on_message(f"reading {experiment.data.source}")
    data = TrainingData(experiment.data, experiment.seed, start, _usual_shape(start), dataset)
    network = network.resolved(data)
    order = start.class_order(data.dataset)
    module = network.build(where.device, start, order)
    check_images(module, data, experiment.sizes, experiment.batch_size, where)
    check_statistics(module, data, experiment, where)
    loss = checked(loss, experiment, len(data.classes), where.device)
    form = _form(experiment, module, data, where)
    memory = StepMemory(
        data.shape, min(experiment.batch_size, len(data.train_index)), form.precision, experiment.optimizer,
        experiment.average, experiment.memory_budget,
    )  # fmt: skip
    extension = DynamicExtension(module, memory, settings)
    gradients, notes = extension.resolve_gradients(experiment.gradients)
    notes = (
        *start.notes,
        *([order.note] if order is not None and order.note else []),
        *_about_data(data, module, start),
        *form.notes(),
        *notes,
        *_warnings(experiment, module, data, where),
    )
    training = _training_loader(experiment, data, where, memory.dtype)
    validation = data.validation_loader(where, experiment.evaluation.batch_size)
    origin: dict[str, Any] = {
        "recipe": experiment.name, "data": data.section.source, "seed": experiment.seed
    }  # fmt: skip
    if data.section.split is not None:
        origin["split"] = data.section.split.model_dump()
    if loss is not None:
        origin["loss"] = experiment.loss
    if data.floats:
        origin["pixels"] = data.floats
    card = weights.Card(network.specification, data.preprocessing, origin)
    resolved = experiment.replace(
        device=str(where.device), data=data.section, model=network.model, init=start.section,
        precision=form.precision, compile=form.compile, gradients=gradients,
    )  # fmt: skip
    return Setup(
        resolved, module, extension, memory, where, data, training, validation, card, notes,
        start.optimizer_state(module, order), loss,
    )  # fmt: skip


def _usual_shape(start: StartingPoint) -> Shape | None:
    """(C, H, W) that the network is made for: of the initial weights, else of the model."""
    if start.preprocessing is not None:
        return (start.preprocessing.channels, *start.preprocessing.size)
    return None if start.model is None else models.entry(start.model.name).shape


def _about_data(data: TrainingData, module: nn.Module, start: StartingPoint) -> Iterator[str]:
    """What the user should know of images of their own."""
    if data.section.source in sources.names():
        return
    yield from data.notes()
    shape = "x".join(map(str, data.shape))
    try:
        least = "at least " if adaptive_solvers(module) else ""
        count = cost.multiply_adds(module, data.shape)
        work = f"; the network takes {least}{count / 1e6:,.1f} M multiply-adds each"
    except RuntimeError:  # a forward that reads values
        work = ""
    yield f"images of {shape} in {len(data.classes)} classes{work}"
    if start.section is None:
        yield from data.few()


def _form(experiment: Experiment, module: nn.Module, data: TrainingData, where: Placement) -> Form:
    """Precision and compilation."""
    return choose(
        module,
        data.shape,
        precision=experiment.precision,
        compile_=experiment.compile,
        batch=experiment.batch_size if experiment.memory_budget is None else 2,  # a budget is applied later
        images=experiment.epochs * len(data.train_index),
        device=where.device,
    )


def _training_loader(
    experiment: Experiment, data: TrainingData, where: Placement, dtype: torch.dtype
) -> Loader:
    """The loader of augmented training images."""
    augmentation = Augmentation(**experiment.augment.model_dump())
    batch_size, seed = experiment.batch_size, experiment.seed
    return data.training_loader(
        where, batch_size=batch_size, dtype=dtype, augmentation=augmentation, seed=seed
    )


def _warnings(
    experiment: Experiment, module: nn.Module, data: TrainingData, where: Placement
) -> Iterator[str]:
    """What the user should know before training: settings without effect, unstable steps."""
    images = len(data.train_index)
    if experiment.batch_size > images:
        yield f"batch_size {experiment.batch_size:,} exceeds the {images:,} training images: a step takes all"
    obstacle = cuda_graph_obstacle(module, where.device, where.world.size)
    if experiment.cuda_graph is True and obstacle:
        yield f"warning: cuda_graph: true has no effect here: {obstacle}"
    if isinstance(module, DynamicNet):
        yield from (f"warning: {line}" for line in module.warnings(*data.shape[1:]))
