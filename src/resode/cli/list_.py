"""`resode list`: what there is, by name."""

from enum import StrEnum
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resode.cli.options import PluginOption, load_plugins
from resode.errors import InputError

if TYPE_CHECKING:
    pass


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    recipes = "recipes"
    fields = "fields"
    integrators = "integrators"
    data = "data"


def list_(
    kind: Annotated[
        Kind | None,
        typer.Argument(metavar="[models|recipes|fields|integrators|data]", help="Left out: all kinds."),
    ] = None,
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name, or a pattern like 'he_*'.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """List models (with their cost) and shipped weights, recipes, fields, integrators, data.

    Examples:

        resode list

        resode list models 'he_*'

        resode list recipes 110

        resode list integrators

    \f
    """
    load_plugins(plugin)
    from resode.cli.console import out

    listings = {
        Kind.models: _models,
        Kind.recipes: _recipes,
        Kind.fields: _fields,
        Kind.integrators: _integrators,
        Kind.data: _data,
    }
    found = False
    for each in Kind if kind is None else (kind,):
        tables = {str(each): listings[each](pattern)}
        if each is Kind.models:
            tables["shipped weights"] = _shipped(pattern)
        for title, rows in tables.items():
            if rows:
                found = True
                out.print(_table(title, rows))
    if not found:
        raise InputError(f"nothing is called '{pattern}'; `resode list` shows all names")


def _matches(name: str, pattern: str | None) -> bool:
    return pattern is None or pattern in name or fnmatch(name, pattern)


def _table(title: str, rows: list[tuple[str, ...]]) -> object:
    from rich import box
    from rich.table import Table

    heads = {
        "models": (title, "parameters", "multiply-adds", "input", ""),
        "shipped weights": (title, "test error", "data", "epochs", "seed", "size", "model"),
        "recipes": (title, "epochs", "published error", ""),
        "fields": (title, "f(y)", "N", ""),
        "integrators": (title, "order", "one step", ""),
        "data": (title, ""),
    }[title]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    words, wraps = ("", "f(y)", "N", "one step", "model", "data"), ("", "one step")
    for number, head in enumerate(heads):
        justify: Literal["left", "right"] = "left" if number == 0 or head in words else "right"
        table.add_column(head, justify=justify, no_wrap=head not in wraps)
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
        if entry.shape is None or entry.required:
            rows.append((name, "", "", "", entry.summary))
            continue
        with torch.device("meta"):
            module = entry.build()
        shape = "x".join(map(str, entry.shape))
        counts = f"{cost.parameters(module):,}", f"{cost.multiply_adds(module, entry.shape) / 1e6:,.1f} M"
        rows.append((name, *counts, shape, entry.summary))
    return rows


def _shipped(pattern: str | None) -> list[tuple[str, ...]]:
    """Trained weights by name, which evaluate, predict, export, twist, analyze and --init take for a run."""
    from resode import pretrained, weights
    from resode.quantities import count, percent, size

    rows: list[tuple[str, ...]] = []
    for name in pretrained.names():
        if _matches(name, pattern) and (file := pretrained.file(name)) is not None:
            card = weights.read_card(file)
            told, model = card.training, card.specification
            figures = percent(told.get("test_error")), str(told.get("data")), count(told.get("epochs"))
            model_name = model.name if model else ""
            rows.append((name, *figures, str(told.get("seed")), size(file.stat().st_size), model_name))
    return rows


def _recipes(pattern: str | None) -> list[tuple[str, ...]]:
    from resode.training import Experiment
    from resode.training.recipe.reading import recipes

    rows: list[tuple[str, ...]] = []
    for name in recipes():
        if _matches(name, pattern):
            experiment = Experiment.from_recipe(name)
            published = experiment.about.published
            error = f"{published.top1_error:.2f} %" if published else ""
            rows.append((name, str(experiment.epochs), error, experiment.about.summary))
    return rows


def _fields(pattern: str | None) -> list[tuple[str, ...]]:
    from resode.fields import fields

    rows: list[tuple[str, ...]] = []
    for name in fields.names():
        if _matches(name, pattern):
            entry = fields.entry(name)
            equation = "" if entry.required else entry.build().equation
            equation, _, norm = equation.partition(", N = ")
            rows.append((name, equation, norm.partition("(")[0] or "none", _about(entry.summary)))
    return rows


def _integrators(pattern: str | None) -> list[tuple[str, ...]]:
    from resode.integrators import integrators

    rows: list[tuple[str, ...]] = []
    for name in integrators.names():
        if not _matches(name, pattern):
            continue
        entry = integrators.entry(name)
        if entry.required:
            rows.append((name, "", "", entry.summary))
        else:
            scheme = entry.build()
            rows.append((name, str(scheme.order or "-"), scheme.equation, entry.summary))
    return rows


def _about(summary: str) -> str:
    """What a summary says beside the equation that stands at its beginning."""
    equation, colon, rest = summary.partition(": ")
    return rest if colon and "(" in equation else summary


def _data(pattern: str | None) -> list[tuple[str, ...]]:
    from resode.data import sources

    return [(name, sources.entry(name).summary) for name in sources.names() if _matches(name, pattern)]
