"""Costs: what the network of a recipe takes, counted without allocating it or reading any data.

Networks are built on the meta device: tensors have shapes but no numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from resode import cost
from resode.data import sources
from resode.data.pinned import PINNED_DATASETS
from resode.memory import Shape
from resode.models import DynamicNet, create, models
from resode.models.budget import set_gradients
from resode.training import Experiment
from resode.training.setup.checks import check_fits_data
from resode.training.setup.memory import StepMemory

NO_IMAGE: Shape = (0, 0, 0)  # parameters take the same bytes for images of any shape


@dataclass(frozen=True)
class NetworkCost:
    """Parameters, and multiply-adds of one image (None where the size of an image is not known)."""

    parameters: int
    multiply_adds: int | None


def network_cost(build: Callable[[], nn.Module], shape: Shape | None) -> NetworkCost:
    """The cost of the network that `build` makes, for images of shape (C, H, W)."""
    module = _on_meta(build)
    work = None if shape is None else cost.multiply_adds(module, shape)
    return NetworkCost(cost.parameters(module), work)


@dataclass(frozen=True)
class MethodMemory:
    """Activation memory of a training step with one choice of gradient methods.

    Args:
        name: of the choice.
        activation_bytes: peak of the activations.
        recomputed: forward passes that the backward pass recomputes.
    """

    name: str
    activation_bytes: int
    recomputed: float


@dataclass(frozen=True)
class RecipeCost:
    """What a recipe takes.

    Args:
        model: name of the network.
        shape: (C, H, W) of an image; None where neither data nor model say it.
        network: parameters and multiply-adds.
        fixed_bytes: of parameters, of their gradients, and of the optimizer state.
        steps: memory of a training step as the recipe says, with each gradient method at its smallest, and
            as a memory budget chooses; empty without a shape.
    """

    model: str
    shape: Shape | None
    network: NetworkCost
    fixed_bytes: tuple[int, int, int]
    steps: tuple[MethodMemory, ...]


def recipe_cost(experiment: Experiment) -> RecipeCost | None:
    """The cost of a recipe; None for one that names no model.

    Raises:
        InputError: a model that does not fit the data, or a memory budget that nothing meets.
    """
    if experiment.model is None:
        return None
    name, options = experiment.model.name, model_options(experiment)
    module, shape = _on_meta(lambda: models.build(name, **options)), image_shape(experiment)
    work = None if shape is None else cost.multiply_adds(module, shape)
    return RecipeCost(
        name,
        shape,
        NetworkCost(cost.parameters(module), work),
        StepMemory.of(experiment, shape or NO_IMAGE).fixed_bytes(module),
        () if shape is None else tuple(_step_memory(experiment, module, shape)),
    )


def explain_blocks(experiment: Experiment) -> str:
    """What the dynamic blocks of a recipe's network say of themselves, with the weights that its seed gives.

    Empty for other networks.
    """
    if experiment.model is None:
        return ""
    name, options = experiment.model.name, model_options(experiment)
    if not isinstance(_on_meta(lambda: create(name, **options)), DynamicNet):
        return ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        module = create(name, **options)
    assert isinstance(module, DynamicNet)
    return module.explain(image_shape(experiment), experiment.batch_size)


def image_shape(experiment: Experiment) -> Shape | None:
    """(C, H, W) of the images: of the data where it is registered with a shape, else of the model."""
    section, model = experiment.data, experiment.model
    assert model is not None
    usual = models.entry(model.name).shape
    known = sources.entry(section.source).shape if section.source in sources.names() else None
    if usual is None or known is None:
        return None if usual is None else (model.options.get("in_channels", usual[0]), *usual[1:])
    side = section.image_size
    return (known[0], side, side) if side is not None else known


def model_options(experiment: Experiment) -> dict[str, Any]:
    """The options of the model, completed by classes and channels of a known data set.

    Raises:
        InputError: an option that contradicts the data.
    """
    model, shape = experiment.model, image_shape(experiment)
    assert model is not None
    classes = {known.name: len(known.classes) for known in PINNED_DATASETS}.get(experiment.data.source)
    found = {"classes": classes, "in_channels": None if shape is None else shape[0]}
    accepted = models.entry(model.name).options()
    decided = {key: value for key, value in found.items() if value is not None and key in accepted}
    check_fits_data(model.options, decided, experiment.data.source)
    return {**decided, **model.options}


def _step_memory(experiment: Experiment, module: nn.Module, shape: Shape) -> list[MethodMemory]:
    if experiment.gradients is not None:
        set_gradients(module, experiment.gradients)
    memory = StepMemory.of(experiment, shape)
    choices = memory.choices(module)
    by_budget = experiment.memory_budget is not None and experiment.gradients is None
    steps = [] if by_budget else [MethodMemory("as the recipe says", choices.current_bytes(), 0)]
    steps += [
        MethodMemory(each.name, each.activation_bytes, each.recomputed) for each in choices.smallest_by_kind()
    ]
    if by_budget:
        chosen = memory.choose(module, choices)
        steps.append(MethodMemory(f"chosen: {chosen.name}", chosen.activation_bytes, chosen.recomputed))
    return steps


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()
