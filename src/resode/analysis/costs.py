"""Costs: what the network of a recipe takes, counted without allocating it or reading any data.

Networks are built on the meta device: tensors have shapes but no numbers. What the package's own models and
recipes take is recorded in `resode.catalogue`.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from resode import cost, pretrained, recipes, weights
from resode.blocks import adaptive_solvers
from resode.catalogue import MethodMemory, ModelFacts, NetworkCost, PretrainedFacts, RecipeCost
from resode.data import sources
from resode.data.pinned import PINNED_DATASETS
from resode.memory import Shape
from resode.models import DynamicNet, create, models
from resode.models.budget import set_gradients
from resode.training import Experiment
from resode.training.setup.checks import check_fits_data
from resode.training.setup.memory import StepMemory

NO_IMAGE: Shape = (0, 0, 0)  # parameters take the same bytes for images of any shape


def network_cost(build: Callable[[], nn.Module], shape: Shape | None) -> NetworkCost:
    """The cost of the network that `build` makes, for images of shape (C, H, W)."""
    module = _on_meta(build)
    work = None if shape is None else cost.multiply_adds(module, shape)
    return NetworkCost(cost.parameters(module), work, adaptive_solvers(module))


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
        NetworkCost(cost.parameters(module), work, adaptive_solvers(module)),
        StepMemory.of(experiment, shape or NO_IMAGE).fixed_bytes(module),
        () if shape is None else tuple(_step_memory(experiment, module, shape)),
        isinstance(module, DynamicNet),
    )


def for_catalogue() -> dict[str, Any]:
    """The content of `catalogue.json`, computed: facts of every registered model, cost of every recipe."""
    costs = {name: recipe_cost(Experiment.from_recipe(name)) for name in recipes.files()}
    return {
        "models": {name: _record(model_facts(name)) for name in models.names()},
        "pretrained": {name: asdict(pretrained_facts(name)) for name in pretrained.names()},
        "recipes": {name: _record(found) for name, found in costs.items() if found is not None},
    }


def _record(facts: ModelFacts | RecipeCost) -> dict[str, Any]:
    """Facts as plain data; fixed steps name no solver."""
    return asdict(facts, dict_factory=lambda pairs: {k: v for k, v in pairs if k != "solvers" or v})


def model_facts(name: str) -> ModelFacts:
    """What is known of a registered model; its cost is that with default options."""
    entry = models.entry(name)
    needs_options = entry.shape is None or entry.required
    found = None if needs_options else network_cost(entry.build, entry.shape)
    return ModelFacts(entry.summary, entry.shape, tuple(entry.options()), found)


def pretrained_facts(name: str) -> PretrainedFacts:
    """What the card of pretrained weights says."""
    file = pretrained.file(name)
    assert file is not None
    card = weights.read_card(file)
    assert card.specification is not None
    training = card.training
    return PretrainedFacts(
        training["test_error"],
        training["data"],
        training["epochs"],
        training["seed"],
        card.specification.name,
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
