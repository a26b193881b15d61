"""Recipes: experiments as YAML files, packaged with resode or written by the user.

A recipe may name a `base` (a recipe, or a file beside it) and give only what differs. `--set a.b=c`
overrides a value; c is YAML.
"""

import copy
import re
import typing
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from resode import recipes
from resode.errors import InputError, nearest


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
    values.setdefault("name", recipe if recipe in recipes.files() else Path(recipe).stem)
    return overridden(values, overrides)


def overridden(values: Mapping[str, Any], overrides: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Plain values of an experiment with overrides; what no longer holds of the old values is dropped."""
    changed = copy.deepcopy(dict(values))
    changes = dict(sorted(overrides, key=lambda pair: not pair[0].endswith(".name")))
    for path, value in changes.items():
        _override(changed, path.split("."), value)
    _drop_outdated(changed, values, changes)
    return changed


def _drop_outdated(values: dict[str, Any], original: Mapping[str, Any], given: Collection[str]) -> None:
    """Remove what no longer holds since something on which it depends has changed; but not what is given."""
    for section, keys in _outdated(values, original):
        for key in keys:
            if f"{section}.{key}" not in given and isinstance(values.get(section), dict):
                values[section].pop(key, None)


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
    """The values of a recipe on top of its base."""
    if recipe in chain:
        raise InputError(f"{recipe}: its base leads back to itself ({' -> '.join((*chain, recipe))})")
    values = parse_yaml(_text(recipe), recipe)
    base = values.pop("base", None)
    if base is None:
        if is_study(values):
            raise InputError(f"{recipe}: is a study of several runs; train them with `resode study {recipe}`")
        return values
    if not isinstance(base, str):
        raise InputError(f"{recipe}: 'base' is the name of a recipe or of a file, not {base!r}")
    try:
        merged = _read(_beside(recipe, base), (*chain, recipe))
    except InputError as error:
        raise InputError(*(f"{recipe}: base: {line}" for line in error.messages)) from None
    merged.pop("name", None)
    original = copy.deepcopy(merged)
    for key, value in values.items():
        _override(merged, [key], value)
    if recipe not in recipes.files():  # those of the package say of themselves what holds
        given = {
            f"{section}.{key}" for section, keys in values.items() if isinstance(keys, dict) for key in keys
        }
        _drop_outdated(merged, original, given)
    return merged


def _beside(recipe: str, base: str) -> str:
    """The base of a recipe: a name, or a file, which is looked for beside that of the recipe first."""
    if base in recipes.files():
        return base
    path = Path(recipe).parent / base
    return str(path) if path.exists() else base


_OF_STUDIES = frozenset({"arms", "choose", "grid", "recipe", "seeds", "set", "slurm"})
_OF_EXPERIMENTS = frozenset({"base", "batch_size", "data", "epochs", "model", "optimizer", "schedule"})


def is_study(values: Mapping[str, Any]) -> bool:
    """Whether the keys of a YAML file are those of a study, none those of an experiment."""
    return bool(_OF_STUDIES & values.keys()) and not _OF_EXPERIMENTS & values.keys()


def is_experiment(values: Mapping[str, Any]) -> bool:
    """Whether the keys of a YAML file are those of an experiment, none those of a study."""
    return bool(_OF_EXPERIMENTS & values.keys()) and not _OF_STUDIES & values.keys()


def _text(recipe: str) -> str:
    known = recipes.files()
    path = Path(recipe)
    if path.is_dir():
        path = path / "experiment.yaml"
        if not path.is_file():
            raise InputError(f"{recipe}: has no experiment.yaml; give a recipe or a run directory")
    elif recipe in known:
        path = known[recipe]
    elif not path.is_file():
        raise _unknown(recipe)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None


def _unknown(recipe: str) -> InputError:
    """The error for a name that no recipe has: it may be a part of one, or a model."""
    from resode.models import models

    known = sorted(recipes.files(), key=lambda name: not name.startswith("he2016/"))  # the papers' first
    if recipe in models.names():
        of_it = [name for name in known if model_of(name) == recipe]
        train = of_it[0] if of_it else f"modern/resnet18 --set model.name={recipe}"
        more = f" (or {', '.join(of_it[1:])})" if len(of_it) > 1 else ""
        return InputError(
            f"'{recipe}' is a model, not a recipe; train it by `resode train {train}`{more}; "
            f"`resode show {recipe}` has its cost"
        )
    same = [n for n in known if recipe in n.split("/")] or [
        n for n in known if len(recipe) > 4 and recipe in n
    ]
    hint = f"; did you mean '{same[0]}'?" if same else nearest(recipe, known)
    others = f" Others: {', '.join(same[1:])}." if same[1:] else ""
    of_models = [name for name in models.names() if name.endswith(f"_{recipe}")]
    shown = ", ".join(f"`resode show {name}`" for name in of_models)
    also = f" Models: {shown}." if of_models else ""
    where = "" if same or of_models else " (`resode list recipes`, or a YAML file)"
    return InputError(f"unknown recipe '{recipe}'{hint}{others}{also}{where}")


def model_of(recipe: str) -> str:
    """The name of the model that a recipe trains; empty if it names none."""
    model = _read(recipe, ()).get("model")
    return str(model.get("name", "")) if isinstance(model, Mapping) else ""


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
    seen = set()
    for place, _ in node.value:
        if place.tag == "tag:yaml.org,2002:bool":  # an arm of a study may be called yes or no
            place.tag = "tag:yaml.org,2002:str"
        key = loader.construct_object(place)
        if not isinstance(key, Hashable):
            continue  # construct_mapping refuses it
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{key}' is given twice", place.start_mark
            )
        seen.add(key)
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
    except RecursionError:
        raise InputError(f"{origin}: is nested too deeply for a recipe") from None
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
        except (yaml.YAMLError, RecursionError):
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
