"""Mistakes in settings: pydantic's errors as one line each, with path, problem and nearest valid name."""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from resode.errors import nearest


def explain(error: ValidationError, settings: type[BaseModel]) -> list[str]:
    """One line for each mistake.

    Args:
        error: raised by the validation of `settings`.
        settings: the model whose keys are known.
    """
    return list(dict.fromkeys(_line(item, settings) for item in error.errors()))


def _line(item: Mapping[str, Any], settings: type[BaseModel]) -> str:
    path, known = _path(item["loc"], settings)
    where, given = ".".join(path) or "the experiment", item["input"]
    match item["type"]:
        case "extra_forbidden":
            return f"unknown key '{where}'{nearest(path[-1], known)} (known here: {', '.join(known)})"
        case "missing":
            return f"'{where}' is missing"
        case "union_tag_not_found":
            return f"'{where}' needs a name"
        case "union_tag_invalid" | "literal_error":
            word = str(given.get("name") if isinstance(given, dict) else given)
            choices = item["ctx"].get("expected_tags") or item["ctx"].get("expected", "")
            words = [w.strip(" '") for w in choices.replace(" or ", ", ").split(",")]
            return f"'{where}' cannot be '{word}'{nearest(word, words)} (one of: {', '.join(words)})"
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {given!r})"
    return f"'{where}': {message[0].lower()}{message[1:]}{shown}"


def _path(location: tuple[int | str, ...], settings: type[BaseModel]) -> tuple[list[str], list[str]]:
    """The path of a mistake without pydantic's names of union members, and the keys known at its end."""
    sections: list[type[BaseModel]] = [settings]
    path: list[str] = []
    for key in map(str, location):
        owners = [s for s in sections if key in s.model_fields]
        variants = [s for s in sections if "name" in s.model_fields and s.model_fields["name"].default == key]
        if owners:
            path.append(key)
            sections = [s for owner in owners for s in sections_of(owner.model_fields[key].annotation)]
        elif variants:
            sections = variants
        elif key.isdigit():  # an item of a list
            path.append(key)
        elif sections:  # a key that no section here knows
            path.append(key)
            break
    return path, sorted({name for s in sections for name in s.model_fields})


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a type annotation admits."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
    else:
        for argument in typing.get_args(annotation):
            yield from sections_of(argument)
