"""Recipes: experiments as YAML files, packaged with resode or written by the user.

A recipe may name a `base` recipe and give only what differs. `--set a.b=c` overrides a value; c is YAML.
"""

import copy
import importlib.resources
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from resode.errors import InputError, nearest


def recipes() -> dict[str, Traversable]:
    """The recipes of the package: name -> file, in natural order (resnet20 before resnet110)."""
    return dict(_recipes_in(importlib.resources.files("resode") / "recipes", ""))


def _recipes_in(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=_natural):
        if entry.is_dir():
            yield from _recipes_in(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml"), entry


def _natural(entry: Traversable) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", entry.name)]


def read(recipe: str, overrides: Iterable[tuple[str, Any]] = ()) -> dict[str, Any]:
    """Read a recipe as plain values, on top of its base, and apply overrides.

    With other data, another network or other initial weights, what the recipe knows of the old ones (its
    published result, the normalisation, hashes) is dropped unless it is overridden, too.

    Args:
        recipe: the name of a recipe of resode, a YAML file, or a run directory.
        overrides: (dotted path, value); where a path is given twice, the last one counts.

    Raises:
        InputError: there is no such recipe, or it is not valid YAML.
    """
    values = _read(recipe, ())
    values.setdefault("name", recipe if recipe in recipes() else Path(recipe).stem)
    return overridden(values, overrides)


def overridden(values: Mapping[str, Any], overrides: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Plain values of an experiment with overrides; what no longer holds of the old values is dropped."""
    original, changed = values, copy.deepcopy(dict(values))
    changes = dict(sorted(overrides, key=lambda pair: not pair[0].endswith(".name")))
    for path, value in changes.items():
        _override(changed, path.split("."), value)
    for section, keys in _outdated(changed, original):
        for key in keys:
            if f"{section}.{key}" not in changes and isinstance(changed.get(section), dict):
                changed[section].pop(key, None)
    return changed


def _outdated(values: Mapping[str, Any], original: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str]]]:
    """Sections, and their keys that no longer hold, since the values depend on something that has changed."""

    def changed(section: str, key: str) -> bool:
        old, new = (
            part.get(key) if isinstance(part := holder.get(section), Mapping) else part
            for holder in (original, values)
        )
        return bool(old != new)

    other_data = changed("data", "source")
    if other_data:
        yield "data", ("fingerprint", "mean", "std")
        yield "model", ("classes", "in_channels")
    if other_data or values.get("model") != original.get("model"):
        yield "about", ("published", "expected")
    if changed("init", "path"):
        yield "init", ("sha256", "optimizer_sha256")


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
    known = recipes()
    path = Path(recipe)
    if path.is_dir():
        path = path / "experiment.yaml"
        if not path.is_file():
            raise InputError(f"{recipe}: has no experiment.yaml; give a recipe or a run directory")
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
    """Safe YAML with the floats of YAML 1.2 (`1e-4` is a number); a duplicate key is an error."""


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
                None, None, f"the key '{key}' is given twice", node.start_mark
            )
    return typing.cast(dict[Any, Any], loader.construct_mapping(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Parse a YAML mapping; error messages begin with `origin`.

    Raises:
        InputError: the text is not valid YAML, or not a mapping.
    """
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


_VARIANTS = ("model", "optimizer", "schedule")


def parse_overrides(texts: Iterable[str]) -> list[tuple[str, Any]]:
    """Parse `a.b=c` into ("a.b", c), c read as YAML.

    Raises:
        InputError: with a line for every text that is not of this form.
    """
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
    """Set one value; a change of `model.name`, `optimizer.name` or `schedule.name` discards their options."""
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
