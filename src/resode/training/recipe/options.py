"""Options of what recipes name: models, fields, integrators, ..., from signatures and docstrings.

for option in options_of("model", "he_resnet20"):
    print(option.name, option.default, option.description)
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from resode.registry import Registry


@dataclass(frozen=True)
class Option:
    """An option: its name, its default as text (empty where it has to be given), and a sentence about it."""

    name: str
    default: str
    description: str


def registry(kind: str) -> Registry[Any]:
    """The names of a kind, `model`, `field`, `integrator` or `gradient`; loads PyTorch."""
    from resode.fields import fields
    from resode.gradients import gradients
    from resode.integrators import integrators
    from resode.models import models

    registries: dict[str, Registry[Any]] = {
        "model": models,
        "field": fields,
        "integrator": integrators,
        "gradient": gradients,
    }
    return registries[kind]


def options_of(kind: str, name: str) -> list[Option]:
    """The options of a registered name.

    Raises:
        InputError: the name is unknown; with the nearest known one.
    """
    entry = registry(kind).entry(name)
    described = _arguments(entry.factory)
    return [
        Option(key, "" if each.default is each.empty else repr(each.default), described.get(key, ""))
        for key, each in entry.options().items()
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]


def _arguments(factory: Callable[..., Any]) -> Mapping[str, str]:
    """The section `Args` of a docstring, by argument, each as one line."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    text = inspect.getdoc(factory) or ""
    _, found, section = text.partition("Args:\n")
    lines = re.split(r"\n(?=\S)", section, maxsplit=1)[0] if found else ""
    items = re.split(r"^ {4}(?=\w[\w, ]*:)", lines, flags=re.MULTILINE)[1:]
    described = {}
    for item in items:
        names, _, sentence = item.partition(":")
        described.update(dict.fromkeys(map(str.strip, names.split(",")), " ".join(sentence.split())))
    return described
