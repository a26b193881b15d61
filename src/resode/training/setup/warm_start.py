"""Initial weights: what a run that starts from a file (`init`) takes from it besides the numbers.

The network's options, where the file holds the recipe's network or one made from it (regridded, twisted), the
normalisation of the images, and the optimizer's state.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resode import atomic, weights
from resode.data import Dataset
from resode.errors import InputError, IntegrityError
from resode.models import DynamicNet, create
from resode.training.optim import optimizers
from resode.training.recipe.experiment import Experiment
from resode.training.recipe.network import Model


def initial_optimizer_state(experiment: Experiment, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state to begin with, by `<state>/<parameter>`; none unless `init` asks for it."""
    init = experiment.init
    if init is None or not init.optimizer:
        return {}
    return optimizers.read_state(Path(init.path), module, experiment.optimizer)


def resolve_init(
    experiment: Experiment, module: nn.Module | None, data: Dataset
) -> tuple[Experiment, list[str]]:
    """Take the network's options and the normalisation from the weights that training starts from.

    Returns:
        The experiment, and what the user should know.
    """
    init = experiment.init
    if init is None:
        return experiment, []
    path = Path(init.path)
    card = weights.read_card(path)
    digest = atomic.sha256(path)
    if init.sha256 not in ("", digest):
        raise IntegrityError(f"{path}: the weights have changed since this run began")
    beside = optimizers.state_file(path)
    of_state = atomic.sha256(beside) if init.optimizer and beside.is_file() else ""
    if init.optimizer_sha256 not in ("", of_state):
        raise IntegrityError(f"{beside}: the optimizer's state has changed since this run began")
    preprocessing, specification = card.preprocessing, card.specification
    channels = data.train.pixels.shape[3]
    if preprocessing.channels != channels:
        raise InputError(
            f"{path}: takes images of {preprocessing.channels} channels, {data.name} has {channels}"
        )
    hashes = {"sha256": digest, "optimizer_sha256": of_state}
    changes: dict[str, Any] = {"init": init.model_copy(update=hashes)}
    notes = []
    if module is None and specification is not None and experiment.model is not None:
        own = experiment.model.options
        if _is_regridded(specification, experiment.model):
            own = {}
            notes.append(f"the network is that of {path}: the recipe's on other time grids")
        elif _is_twisted(specification, experiment.model):
            own = {}
            notes.append(f"the network is that of {path}: the recipe's, twisted")
        elif specification.name != experiment.model.name:
            raise InputError(
                f"{path}: holds a {specification.name}, the recipe trains a {experiment.model.name}; "
                f"to train the file's network add --set model.name={specification.name}"
            )
        of_data = ("classes", "in_channels")
        options = {key: value for key, value in specification.options.items() if key not in of_data}
        changes["model"] = Model(name=specification.name, **{**options, **own})
    if experiment.data.mean is None and not card.training.get("new"):
        normalisation = {"mean": preprocessing.mean, "std": preprocessing.std}
        changes["data"] = experiment.data.model_copy(update=normalisation)
    return experiment.replace(**changes), notes


def _is_regridded(specification: weights.Specification, model: Model) -> bool:
    """Whether a network of a file is a recipe's network of dynamic blocks, on other time grids."""
    if specification.name != "dynamic":
        return False
    of_data = {k: specification.options[k] for k in ("classes", "in_channels") if k in specification.options}
    try:
        with torch.device("meta"):
            network = create(model.name, **{**model.options, **of_data})
    except (InputError, RuntimeError):
        return False
    if not isinstance(network, DynamicNet):
        return False
    recipe = weights.Specification("dynamic", network.options())
    return recipe != specification and _without_grids(recipe) == _without_grids(specification)


def _is_twisted(specification: weights.Specification, model: Model) -> bool:
    """Whether a network of a file is a recipe's network, twisted, once or more."""
    own = {key: value for key, value in model.options.items() if key not in ("classes", "in_channels")}
    name, options = specification.name, specification.options
    while name == "twisted":
        options = dict(options["of"]) if isinstance(options["of"], Mapping) else {"name": options["of"]}
        name = options.pop("name")
        if (name, options) == (model.name, own):
            return True
    return False


def _without_grids(specification: weights.Specification) -> dict[str, Any]:
    stages = [
        {key: value for key, value in stage.items() if key not in ("states", "controls", "gradient")}
        for stage in specification.options.get("stages", ())
    ]
    return {**specification.options, "stages": stages}
