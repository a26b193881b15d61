"""Catalogue: what is known of the models and recipes of the package without building a network.

`catalogue.json` holds names, options and costs, so that `resode list models` and `resode show RECIPE` need
no PyTorch. `python results/catalogue.py` writes it from the networks themselves (`resode.analysis.costs`); a
test compares the two.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("catalogue.json")

Shape = tuple[int, int, int]  # channels, height and width of one image


@dataclass(frozen=True)
class NetworkCost:
    """Parameters, and multiply-adds of one image.

    Args:
        parameters: their number.
        multiply_adds: with one evaluation of each adaptive block; None without a known image size.
        solvers: the adaptive solvers and their tolerances; empty: all steps are fixed.
    """

    parameters: int
    multiply_adds: int | None
    solvers: str = ""

    @property
    def work(self) -> str:
        """`40.6 M`; with an adaptive solver `>= 40.6 M`; empty where it is not known."""
        if self.multiply_adds is None:
            return ""
        return f"{'>= ' if self.solvers else ''}{self.multiply_adds / 1e6:,.1f} M"

    @property
    def counted(self) -> str:
        """What a number leaves open, to be appended to it; empty for fixed steps."""
        return f" (one evaluation counted of {self.solvers}, which makes more)" if self.solvers else ""


@dataclass(frozen=True)
class ModelFacts:
    """What `resode list models` shows of a model.

    Args:
        summary: one line about it.
        shape: (C, H, W) of its usual input.
        options: names of its options.
        cost: with default options; None for a model that needs options.
    """

    summary: str
    shape: Shape | None
    options: tuple[str, ...]
    cost: NetworkCost | None


@dataclass(frozen=True)
class PretrainedFacts:
    """What the card of pretrained weights says: test error in percent, data set, epochs, seed, model."""

    test_error: float
    data: str
    epochs: int
    seed: int
    model: str


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
        dynamic: whether the network consists of dynamic blocks.
    """

    model: str
    shape: Shape | None
    network: NetworkCost
    fixed_bytes: tuple[int, int, int]
    steps: tuple[MethodMemory, ...]
    dynamic: bool


def models() -> dict[str, ModelFacts]:
    """The models of the package by name, in their order."""
    return {
        name: ModelFacts(
            facts["summary"], _shape(facts["shape"]), tuple(facts["options"]), _cost(facts["cost"])
        )
        for name, facts in _read()["models"].items()
    }


def pretrained() -> dict[str, PretrainedFacts]:
    """The pretrained weights of the package by name."""
    return {name: PretrainedFacts(**facts) for name, facts in _read()["pretrained"].items()}


def recipe(name: str) -> RecipeCost | None:
    """The cost of a recipe of the package as it stands; None for another name."""
    found = _read()["recipes"].get(name)
    if found is None:
        return None
    network = _cost(found["network"])
    assert network is not None
    parameters, gradients, optimizer = found["fixed_bytes"]
    return RecipeCost(
        found["model"],
        _shape(found["shape"]),
        network,
        (parameters, gradients, optimizer),
        tuple(MethodMemory(**step) for step in found["steps"]),
        found["dynamic"],
    )


@cache
def _read() -> Mapping[str, Any]:
    """The file; empty while it is being written for the first time."""
    empty: dict[str, Any] = {"models": {}, "pretrained": {}, "recipes": {}}
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else empty


def _shape(values: list[int] | None) -> Shape | None:
    return None if values is None else (values[0], values[1], values[2])


def _cost(values: dict[str, Any] | None) -> NetworkCost | None:
    return None if values is None else NetworkCost(**values)
