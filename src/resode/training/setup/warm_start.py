"""Warm start: what a run takes from the weights file in `init` besides the weights.

These are the network's options, where the file holds the recipe's network or one made from it (regridded,
lifted, twisted), the normalisation of the images, and the optimizer's state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resode import atomic, weights
from resode.data import Dataset
from resode.data.given import numbers
from resode.data.matching import BY_NAME, BY_POSITION, ClassOrder, How, class_order
from resode.errors import InputError, IntegrityError
from resode.mode import mode
from resode.models import DynamicNet, create
from resode.models.lifting import lifted_options
from resode.registry import IN_PYTHON
from resode.training.optim import optimizers
from resode.training.recipe import network as settings
from resode.training.recipe.network import Model
from resode.training.recipe.optimizer import Optimizer

_FIX = (
    "--set init.new_head=true for a new last layer, --set init.classes=by-position if class i of the data is "
    "logit i, or --set init.classes={...}, a mapping from the data's names to those of the weights"
)
DECIDED_BY_DATA = ("classes", "in_channels")


@dataclass(frozen=True)
class StartingPoint:
    """What the file and the recipe together decide.

    Args:
        section: `init` with the hashes of its files; None: initial weights are random.
        model: the network to build; None where the user gives a module.
        optimizer: of the experiment.
        preprocessing: of the file.
        normalised: whether that preprocessing comes from training images.
        assumes_classes: whether the names of the file's classes are assumed.
        notes: what the user should know.
    """

    section: settings.WarmStart | None
    model: Model | None
    optimizer: Optimizer
    preprocessing: weights.Preprocessing | None = None
    normalised: bool = False
    assumes_classes: bool = False
    notes: tuple[str, ...] = ()

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std that the weights were trained with; None where they are not known."""
        known = self.preprocessing if self.normalised else None
        return None if known is None else (known.mean, known.std)

    def class_order(self, data: Dataset) -> ClassOrder | None:
        """The place of each class of the data among those of the weights; None where no layer is kept for it.

        Arrays given in Python have numbers for classes, which stand for positions.

        Raises:
            InputError: the data has other classes.
        """
        if self.section is None or self.preprocessing is None or self.section.new_head:
            return None
        path, wanted = self.section.path, self.preprocessing.classes
        how: How = self.section.classes
        if len(data.classes) != len(wanted):
            raise InputError(
                f"{path}: is for {len(wanted)} classes, {data.name} has {len(data.classes)}; "
                "--set init.new_head=true trains a new last layer"
            )
        if how == BY_NAME and data.name.endswith(IN_PYTHON) and data.classes == numbers(len(wanted)):
            how = BY_POSITION
        order = class_order(data.name, data.classes, wanted, how, assumed=self.assumes_classes, fix=_FIX)
        if len(set(order.index.tolist())) < len(wanted):
            raise InputError(
                f"{path}: init.classes maps two classes of {data.name} to one; give each its own"
            )
        return order

    def permute_head(self, module: nn.Module, order: ClassOrder) -> None:
        """Put the rows of the last layer, as the file has them, in the order of the data's classes.

        Raises:
            InputError: the logits of the network are not the outputs of its last layer.
        """
        if order.in_place or self.section is None or self.preprocessing is None:
            return
        index, names = torch.from_numpy(order.index), weights.head(module)
        shape = (2, self.preprocessing.channels, *self.preprocessing.size)
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        own = next(module.parameters())
        with torch.no_grad(), mode(module, training=False):
            example = example.to(own.device, own.dtype)
            before = module(example)
            for name in names:
                parameter = module.get_parameter(name)
                parameter.copy_(parameter[index])
            if not torch.allclose(module(example), before[:, index], rtol=1e-3, atol=1e-4):
                raise InputError(
                    f"{self.section.path}: has its classes in another order than the data, and the last "
                    f"layer of the network, {names[0]}, does not give its logits; --set init.new_head=true"
                )

    def optimizer_state(self, module: nn.Module, order: ClassOrder | None) -> dict[str, Tensor]:
        """The optimizer's initial state, `<state>/<parameter>` -> tensor; empty unless `init` asks for it.

        Args:
            module: the network with its initial weights.
            order: of the classes; None: the last layer is new, and so is its state.
        """
        if self.section is None or not self.section.optimizer:
            return {}
        path = Path(self.section.path)
        if order is None:
            return optimizers.read_state(path, module, self.optimizer, fresh=weights.head(module))
        state = optimizers.read_state(path, module, self.optimizer)
        if order.in_place:
            return state
        index, names = torch.from_numpy(order.index), weights.head(module)
        return {
            key: tensor[index] if key.partition("/")[2] in names and tensor.ndim else tensor
            for key, tensor in state.items()
        }

    def check_channels(self, data: Dataset) -> None:
        """Raise `InputError` where the file's network takes images of another number of channels."""
        channels = data.train.pixels.shape[3]
        if self.section is not None and self.preprocessing is not None:
            expected = self.preprocessing.channels
            if expected != channels:
                raise InputError(
                    f"{self.section.path}: takes images of {expected} channels, {data.name} has {channels}"
                )


def read_warm_start(
    section: settings.WarmStart | None, model: Model | None, optimizer: Optimizer
) -> StartingPoint:
    """Read the card of the weights file, if there is one.

    Args:
        section: `init` of the experiment.
        model: the recipe's network; None: the user gives a module.
        optimizer: of the experiment.

    Raises:
        InputError: the file holds another network.
        IntegrityError: a file has changed since the run began.
    """
    if section is None:
        return StartingPoint(None, model, optimizer)
    path = Path(section.path)
    card = weights.read_card(path)
    hashes = _checked_hashes(section, path)
    notes: tuple[str, ...] = ()
    if model is not None and card.specification is not None:
        model, notes = _merged(path, card.specification, model)
    normalised = not card.training.get("new")
    section = section.model_copy(update=hashes)
    return StartingPoint(
        section, model, optimizer, card.preprocessing, normalised, card.assumes_classes, notes
    )


def _checked_hashes(section: settings.WarmStart, path: Path) -> dict[str, str]:
    """The SHA-256 of the weights and of the optimizer's state, which must be those recorded."""
    digest = atomic.sha256(path)
    if section.sha256 not in ("", digest):
        raise IntegrityError(f"{path}: the weights have changed since this run began")
    beside = optimizers.state_file(path)
    of_state = atomic.sha256(beside) if section.optimizer and beside.is_file() else ""
    if section.optimizer_sha256 not in ("", of_state):
        raise IntegrityError(f"{beside}: the optimizer's state has changed since this run began")
    return {"sha256": digest, "optimizer_sha256": of_state}


def _merged(path: Path, specification: weights.Specification, model: Model) -> tuple[Model, tuple[str, ...]]:
    """The network of the file with the recipe's options on top, and a note where it is not the recipe's."""
    own, notes = model.options, tuple[str, ...]()
    if _is_regridded(specification, model):
        own, notes = {}, (f"the network is that of {path}: the recipe's on other time grids",)
    elif _is_lifted(specification, model):
        own, notes = {}, (f"the network is that of {path}: the recipe's, lifted",)
    elif _is_twisted(specification, model):
        own, notes = {}, (f"the network is that of {path}: the recipe's, twisted",)
    elif specification.name != model.name:
        raise InputError(
            f"{path}: holds a {specification.name}, the recipe trains a {model.name}; "
            f"to train the file's network add --set model.name={specification.name}"
        )
    options = {key: value for key, value in specification.options.items() if key not in DECIDED_BY_DATA}
    return Model(name=specification.name, **{**options, **own}), notes


def _is_regridded(specification: weights.Specification, model: Model) -> bool:
    """Whether a file's network is the recipe's network of dynamic blocks on other time grids."""
    network = _of_recipe(specification, model)
    if not isinstance(network, DynamicNet):
        return False
    recipe = weights.Specification("dynamic", network.options())
    return recipe != specification and _without_grids(recipe) == _without_grids(specification)


def _is_lifted(specification: weights.Specification, model: Model) -> bool:
    """Whether a file's network is the recipe's ResNet as dynamic blocks, perhaps on other grids."""
    network = _of_recipe(specification, model)
    options = None if network is None else lifted_options(network)
    if options is None:
        return False
    lifted = weights.Specification("dynamic", options)
    return _without_grids(lifted, "interpolation") == _without_grids(specification, "interpolation")


def _of_recipe(specification: weights.Specification, model: Model) -> nn.Module | None:
    """The recipe's network without data, if the file holds a network of dynamic blocks."""
    if specification.name != "dynamic":
        return None
    by_data = {key: specification.options[key] for key in DECIDED_BY_DATA if key in specification.options}
    try:
        with torch.device("meta"):
            return create(model.name, **{**model.options, **by_data})
    except (InputError, RuntimeError):
        return None


def _is_twisted(specification: weights.Specification, model: Model) -> bool:
    """Whether a file's network is the recipe's network, twisted once or more."""
    own = {key: value for key, value in model.options.items() if key not in DECIDED_BY_DATA}
    name, options = specification.name, specification.options
    while name == "twisted":
        options = dict(options["of"]) if isinstance(options["of"], Mapping) else {"name": options["of"]}
        name = options.pop("name")
        if (name, options) == (model.name, own):
            return True
    return False


def _without_grids(specification: weights.Specification, *more: str) -> dict[str, Any]:
    """The options without what a regrid changes, and without `more` options of stages."""
    left_out = ("states", "controls", "gradient", *more)
    stages = [
        {key: value for key, value in stage.items() if key not in left_out}
        for stage in specification.options.get("stages", ())
    ]
    return {**specification.options, "stages": stages}
