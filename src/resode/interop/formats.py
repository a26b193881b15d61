"""Formats: what is to be known of a foreign checkpoint to make it ours.

A format says which of our models the tensors are, what each is called with us, which are dead, and how the
images were normalised.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from resode.errors import InputError

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Translation:
    """A foreign checkpoint in our words.

    Args:
        model: the name of the model that the tensors look like.
        tensors: by our names.
        options: of the model, beside its classes.
        dead: the foreign names of tensors that the foreign network never used.
    """

    model: str
    tensors: State
    options: Mapping[str, Any] = field(default_factory=dict)
    dead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A foreign format.

    Args:
        name: as `resode import` takes it.
        summary: whose, and which models, in a line.
        translate: tensors to a `Translation`; an `InputError` where they are not of this format.
        mean: of the images, channel by channel.
        std: of the images, channel by channel.
    """

    name: str
    summary: str
    translate: Callable[[State], Translation]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def rename(state: State, rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Each tensor under its new name: the first pattern that matches a name whole gives it.

    Raises:
        InputError: no pattern matches; the first such name is told.
    """
    return {_renamed(name, rules): tensor for name, tensor in state.items()}


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise InputError(f"it knows no tensor '{name}'")


def count(state: State, pattern: str) -> int:
    """How many different numbers the group of `pattern` has among the names of a state."""
    return len({match.group(1) for match in map(re.compile(pattern).match, state) if match})
