"""Mistakes in settings, a line each: path, what the key may be, and the nearest valid name.

Pydantic finds them; the words are ours (`keys`), so that every message says what to write.
"""

import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from resode.errors import nearest
from resode.training.recipe.keys import (
    described,
    every_path,
    item_of,
    sections_in,
    variant,
    words_of,
    written,
)

ELSEWHERE = {  # what other programs call a key
    "learning_rate": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "dataset": "source",
    "lr_scheduler": "schedule",
    "scheduler": "schedule",
    "random_seed": "seed",
    "warmup_epochs": "warmup",
    "recipe": "base",
}
SHOWN = 20  # mistakes at once: a file with more is no recipe
# Keys of a YAML file that are no setting.
ABOVE = ("base",)


def explain(error: ValidationError, settings: type[BaseModel]) -> list[str]:
    """One line for each mistake.

    Args:
        error: raised by the validation of `settings`.
        settings: the model whose keys are known.
    """
    found = error.errors()
    lines = list(dict.fromkeys(_line(item, settings) for item in found[:SHOWN]))
    return lines if len(found) <= SHOWN else [*lines, f"and {len(found) - SHOWN:,} more mistakes"]


def _line(item: Mapping[str, Any], settings: type[BaseModel]) -> str:
    path, known, annotation, words = _place(item["loc"], settings)
    where, given = ".".join(path) or "the experiment", item["input"]
    match item["type"]:
        case "extra_forbidden":
            hint = _meant(path, known, settings) or f" (known here: {', '.join(known)})"
            return f"unknown key '{where}'{hint}"
        case "missing":
            return f"'{where}' is missing"
        case "union_tag_not_found":
            return f"'{where}' needs a name"
        case "union_tag_invalid" | "literal_error":
            word = str(given.get("name") if isinstance(given, dict) else given)
            choices = item["ctx"].get("expected_tags") or item["ctx"].get("expected", "")
            names = [w.strip(" '") for w in choices.replace(" or ", ", ").split(",")]
            if item["type"] == "union_tag_invalid" or typing.get_origin(annotation) is Literal:
                return f"'{where}' cannot be '{word}'{nearest(word, names)} (one of: {', '.join(names)})"
        case "value_error":  # raised by a validator of ours
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(given, dict | BaseModel) else f" (given: {written(given)})"
            return f"'{where}': {message[0].lower()}{message[1:]}{shown}"
        case "string_pattern_mismatch":
            return f"'{where}' cannot be '{given}': it must match {item['ctx']['pattern']}"
        case "too_short" if not given:
            return f"'{where}' is empty; give at least {item['ctx']['min_length']}"
    return f"'{where}' cannot be {_quoted(given)}: give {words}"


def _quoted(given: Any) -> str:
    """A value as the user wrote it, abbreviated."""
    text = written(given) if isinstance(given, str | int | float | list | dict | None) else str(given)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"'{text}'" if isinstance(given, str) else text


def _meant(path: list[str], known: list[str], settings: type[BaseModel]) -> str:
    """The hint at the key that was meant: here, elsewhere by the same name, or the nearest name here."""
    last, prefix = path[-1], "".join(f"{key}." for key in path[:-1])
    word = ELSEWHERE.get(last, last)
    if word in known or word in ABOVE:
        return f"; did you mean '{prefix}{word}'?"
    paths = every_path(settings)
    if f"{prefix}{last}" in paths:  # of another variant: an optimizer's momentum, where that is AdamW
        return ""
    by_name = {other.rpartition(".")[2]: other for other in reversed(paths)}  # the uppermost one counts
    if word in by_name:
        return f"; did you mean '{by_name[word]}'?"
    if hint := nearest(last, known):
        return hint.replace("mean '", f"mean '{prefix}", 1)
    return nearest(last, paths)


def _place(
    location: tuple[int | str, ...], settings: type[BaseModel]
) -> tuple[list[str], list[str], Any, str]:
    """The path of a mistake without pydantic's names of union members, the keys known there, and its type."""
    sections: list[type[BaseModel]] = [settings]
    path: list[str] = []
    annotation: Any = None
    words = "a mapping of keys to values"
    for key in map(str, location):
        owners = [s for s in sections if key in s.model_fields]
        variants = [s for s in sections if variant(s) == key]
        if owners:
            field: FieldInfo = owners[0].model_fields[key]
            path.append(key)
            annotation, words = field.annotation, words_of(field)
            sections = [s for owner in owners for s in sections_in(owner.model_fields[key].annotation)]
        elif variants:
            sections = variants
        elif key.isdigit():  # an item of a list
            path.append(key)
            annotation = item_of(annotation)
            words = described(annotation)
        elif sections or annotation is dict or typing.get_origin(annotation) is dict:
            path.append(key)  # a key that no section here knows, or one of a mapping
            values = typing.get_args(annotation)
            if sections and not values:
                break
            annotation = values[-1] if values else None
            words = described(annotation) if values else words
    return path, sorted({name for s in sections for name in s.model_fields}), annotation, words
