"""Recipes of the package, YAML files by name: published experiments, and our own protocols (`fast/*`, ...).

    from resode import recipes

    recipes.list_recipes("he2016/*")  # ["he2016/resnet20", ...]
    recipes.summary("quickstart")

Needs no PyTorch. `resode.Experiment.from_recipe(name)` reads one; `resode show NAME` prints it.
"""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import MappingProxyType

import yaml

from resode.errors import InputError, nearest

FOLDER = Path(__file__).parent


@cache
def files() -> Mapping[str, Path]:
    """The file of each recipe by its name, in natural order (resnet20 before resnet110)."""
    return MappingProxyType(dict(_files_in(FOLDER, "")))


def list_recipes(pattern: str = "*") -> list[str]:
    """The names of the recipes that a pattern matches.

    Args:
        pattern: a part of a name (`110`), or a pattern (`he2016/*`, `*resnet20`).

    Example:
        >>> list_recipes("quickstart")
        ['quickstart-parabolic', 'quickstart-twist', 'quickstart']

    Raises:
        InputError: the pattern is no text.
    """
    if not isinstance(pattern, str):
        raise InputError(f"pattern {pattern!r}: a text such as 'he2016/*' is needed")
    return [name for name in files() if pattern in name or fnmatch(name, pattern)]


def summary(name: str) -> str:
    """One line about a recipe.

    Raises:
        InputError: no recipe has this name.
    """
    if name not in files():
        raise InputError(f"unknown recipe '{name}'{nearest(name, files())} (`resode list recipes`)")
    values = yaml.safe_load(files()[name].read_text(encoding="utf-8"))
    return str(values["about"]["summary"])


def _files_in(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for entry in sorted(folder.iterdir(), key=_natural):
        if entry.is_dir():
            yield from _files_in(entry, f"{prefix}{entry.name}/")
        elif entry.suffix == ".yaml":
            yield prefix + entry.stem, entry


def _natural(entry: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", entry.name)]
