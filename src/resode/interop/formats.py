"""Formats: how to read a foreign checkpoint as a registered model.

A format knows which model the tensors belong to, their names here, which of them are unused, and how images
were normalised.
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
    """A foreign checkpoint translated to a registered model.

    Args:
        model: the name of the model.
        tensors: by the names of the model.
        options: of the model, except its classes.
        unused: the foreign names of tensors that the foreign network never uses.
    """

    model: str
    tensors: State
    options: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A foreign format.

    Args:
        name: as `resode import` takes it.
        summary: models and kind of network, in a line.
        translate: tensors to a `Translation`; raises `InputError` for tensors of another format.
        mean: of each channel of the images.
        std: of each channel of the images.
    """

    name: str
    summary: str
    translate: Callable[[State], Translation]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def rename(state: State, rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename tensors by regular expressions; the first pattern that matches a whole name applies.

    Raises:
        InputError: no pattern matches a name.
    """
    return {_renamed(name, rules): tensor for name, tensor in state.items()}


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise InputError(f"it has no tensor '{name}'")


def count(state: State, pattern: str) -> int:
    """Count the different values of the group in `pattern` among the names of a state."""
    return len({match.group(1) for match in map(re.compile(pattern).match, state) if match})
