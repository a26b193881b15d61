"""Recipes: experiments as YAML files, shipped with the package or written by the user.

A recipe may name a `base` recipe and say only what differs. `--set a.b=c` overrides a value, c read as YAML.
"""

import importlib.resources
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from resode.errors import InputError, nearest


def _natural(entry: Traversable) -> list[tuple[int, str]]:
    """A key that sorts resnet20 before resnet110."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", entry.name)]


def read(recipe: str, overrides: Iterable[tuple[str, Any]] = ()) -> dict[str, Any]:
    """The plain values of a recipe, its base underneath and the overrides (dotted path, value) on top."""
    values, original = _read(recipe, ()), _read(recipe, ())
    values.setdefault("name", recipe if recipe in shipped() else Path(recipe).stem)
    changes = dict(sorted(overrides, key=lambda pair: not pair[0].endswith(".name")))
    for path, value in changes.items():
        _override(values, path.split("."), value)
    _forget_the_old_task(values, original, changes)
    return values


# What a run or a recipe knew of its data, and what was published of its task, by section.
_KNOWN_OF_DATA = {"data": ("fingerprint", "mean", "std"), "model": ("classes", "in_channels")}
_KNOWN_OF_TASK = {"about": ("published", "expected")}


def _forget_the_old_task(
    values: dict[str, Any], original: Mapping[str, Any], changes: Mapping[str, Any]
) -> None:
    """With other data or another network, drop what was known of the old, unless it is set anew."""

    def get(holder: Mapping[str, Any], section: str, key: str) -> Any:
        part = holder.get(section)
        return part.get(key) if isinstance(part, Mapping) else part

    other_data = get(values, "data", "source") != get(original, "data", "source")
    other_model = values.get("model") != original.get("model")
    other_start = get(values, "init", "path") != get(original, "init", "path")
    forgotten = [
        *((_KNOWN_OF_DATA,) if other_data else ()),
        *((_KNOWN_OF_TASK,) if other_data or other_model else ()),
        *(({"init": ("sha256", "optimizer_sha256")},) if other_start else ()),
    ]
    for known in forgotten:
        for section, keys in known.items():
            for key in keys:
                if f"{section}.{key}" not in changes and isinstance(values.get(section), dict):
                    values[section].pop(key, None)


def shipped() -> dict[str, Traversable]:
    """The shipped recipes: name -> file."""
    found: dict[str, Traversable] = {}

    def walk(folder: Traversable, prefix: str) -> None:
        for entry in sorted(folder.iterdir(), key=_natural):
            if entry.is_dir():
                walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                found[prefix + entry.name.removesuffix(".yaml")] = entry

    walk(importlib.resources.files("resode") / "recipes", "")
    return found


def _read(recipe: str, chain: tuple[str, ...]) -> dict[str, Any]:
    if recipe in chain:
        raise InputError(f"{recipe}: its base leads back to itself ({' -> '.join((*chain, recipe))})")
    values = parse_yaml(_text(recipe), recipe)
    base = values.pop("base", None)
    if base is None:
        return values
    merged = _read(str(base), (*chain, recipe))
    merged.pop("name", None)
    for key, value in values.items():
        _override(merged, [key], value)
    return merged


def _text(recipe: str) -> str:
    known = shipped()
    path = Path(recipe)
    if path.is_dir():
        path = path / "experiment.yaml"
        if not path.is_file():
            raise InputError(f"{recipe}: a folder without experiment.yaml is no run; give a recipe or a run")
    elif recipe in known:
        return known[recipe].read_text(encoding="utf-8")
    elif not path.is_file():
        raise InputError(
            f"unknown recipe '{recipe}'{nearest(recipe, known)} (`resode list recipes`, or a YAML file)"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None


class _Loader(yaml.SafeLoader):
    """YAML with the floats of version 1.2 (`1e-4` is a number), where a key given twice is an error."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:float"]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = (
    r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)|[0-9]+\.[0-9]*|\.[0-9]+|\.(?:inf|nan))$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789."))


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{key}' stands twice", node.start_mark
            )
    return typing.cast(dict[Any, Any], loader.construct_mapping(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """The mapping that a YAML text is; `origin` is how errors call it."""
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise InputError(f"{origin}:{where} is not valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise InputError(
            f"{origin}: a recipe is a mapping of keys to values, as `resode show quickstart` prints"
        )
    return values


# ---------------------------------------------------------------- overrides

_VARIANTS = ("model", "optimizer", "schedule")


def parse_overrides(texts: Iterable[str]) -> list[tuple[str, Any]]:
    """`a.b=c` -> ("a.b", c), c read as YAML."""
    pairs, mistakes = [], []
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in path.split(".")):
            mistakes.append(f"--set {text}: expected key=value, as in --set optimizer.lr=0.05")
            continue
        try:
            pairs.append((path.strip(), yaml.load(value, Loader=_Loader)))
        except yaml.YAMLError:
            mistakes.append(f"--set {text}: the value is not valid YAML")
    if mistakes:
        raise InputError(*mistakes)
    return pairs


def _override(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set one value; another variant (`model.name`, `optimizer.name`, ...) starts from its own defaults."""
    head, *rest = path
    current = values.get(head)
    if rest:
        if not isinstance(current, dict):
            current = values[head] = {}
        if head in _VARIANTS and rest == ["name"] and current.get("name") != value:
            current.clear()
        _override(current, rest, value)
    elif isinstance(current, dict) and isinstance(value, Mapping):
        if head in _VARIANTS and value.get("name", current.get("name")) != current.get("name"):
            current.clear()
        for key, item in value.items():
            _override(current, [str(key)], item)
    else:
        values[head] = dict(value) if isinstance(value, Mapping) else value
