"""`resode list`: what there is, by name."""

from enum import StrEnum
from fnmatch import fnmatch
from typing import Annotated

import typer

from resode.cli.options import PluginOption, load_plugins
from resode.errors import InputError


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    recipes = "recipes"
    data = "data"


def list_(
    kind: Annotated[
        Kind | None, typer.Argument(metavar="[models|recipes|data]", help="Left out: all kinds.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name, or a pattern like 'he_*'.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """List models (with parameters and multiply-adds), recipes (with published figures) or data.

    Examples:

        resode list

        resode list models 'he_*'

        resode list recipes 110

    \f
    """
    load_plugins(plugin)
    from resode.cli.console import out

    listings = {Kind.models: _models, Kind.recipes: _recipes, Kind.data: _data}
    found = False
    for each in Kind if kind is None else (kind,):
        rows = listings[each](pattern)
        if rows:
            found = True
            out.print(_table(str(each), rows))
    if not found:
        raise InputError(f"nothing is called '{pattern}'; `resode list` shows all names")


def _matches(name: str, pattern: str | None) -> bool:
    return pattern is None or pattern in name or fnmatch(name, pattern)


def _table(title: str, rows: list[tuple[str, ...]]) -> object:
    from rich import box
    from rich.table import Table

    heads = {
        "models": (title, "parameters", "multiply-adds", "input", ""),
        "recipes": (title, "epochs", "published error", ""),
        "data": (title, ""),
    }[title]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        last = number == len(heads) - 1
        table.add_column(head, justify="left" if number == 0 or last else "right", no_wrap=not last)
    for row in rows:
        table.add_row(*row)
    return table


def _models(pattern: str | None) -> list[tuple[str, ...]]:
    import torch

    from resode import cost
    from resode.models import models

    rows: list[tuple[str, ...]] = []
    for name in models.names():
        if not _matches(name, pattern):
            continue
        entry = models.entry(name)
        if entry.shape is None:
            rows.append((name, "", "", "", entry.summary))
            continue
        with torch.device("meta"):
            module = entry.build()
        shape = "x".join(map(str, entry.shape))
        counts = f"{cost.parameters(module):,}", f"{cost.multiply_adds(module, entry.shape) / 1e6:,.1f} M"
        rows.append((name, *counts, shape, entry.summary))
    return rows


def _recipes(pattern: str | None) -> list[tuple[str, ...]]:
    from resode.training import Experiment
    from resode.training.recipes import shipped

    rows: list[tuple[str, ...]] = []
    for name in shipped():
        if _matches(name, pattern):
            experiment = Experiment.from_recipe(name)
            published = experiment.about.published
            error = f"{published.top1_error:.2f} %" if published else ""
            rows.append((name, str(experiment.epochs), error, experiment.about.summary))
    return rows


def _data(pattern: str | None) -> list[tuple[str, ...]]:
    from resode.data import sources

    return [(name, sources.entry(name).summary) for name in sources.names() if _matches(name, pattern)]
