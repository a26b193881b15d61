"""`resode list`: models, pretrained weights, recipes, fields, integrators and data, by name."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resode.cli.options import PluginOption
from resode.errors import InputError
from resode.plugins import load_plugins

if TYPE_CHECKING:
    from rich.table import Table

Rows = list[tuple[str, ...]]


def list_(
    kind: Annotated[
        Literal["models", "recipes", "fields", "integrators", "data"] | None,
        typer.Argument(metavar="[KIND]", help="What to list (default: all)."),
    ] = None,
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name, or a pattern like 'he_*'.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """List models (with their cost) and pretrained weights, recipes, fields, integrators, data.

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
        "models": (_models, _pretrained),
        "recipes": (_recipes,),
        "fields": (_fields,),
        "integrators": (_integrators,),
        "data": (_data,),
    }
    found = False
    for each in listings if kind is None else (kind,):
        for listing in listings[each]:
            table = listing(pattern)
            if table.row_count:
                found = True
                out.print(table)
    if not found:
        raise InputError(f"nothing is called '{pattern}'; `resode list` shows all names")


def _matching(names: Iterable[str], pattern: str | None) -> Iterator[str]:
    return (name for name in names if pattern is None or pattern in name or fnmatch(name, pattern))


def _table(rows: Rows, *heads: str) -> "Table":
    """A table of names; columns of words are aligned to the left, those of formulas wrap."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    words, wraps = ("", "f(y)", "N", "one step", "model", "data"), ("", "one step")
    for number, head in enumerate(heads):
        justify: Literal["left", "right"] = "left" if number == 0 or head in words else "right"
        table.add_column(head, justify=justify, no_wrap=head not in wraps)
    for row in rows:
        table.add_row(*row)
    return table


def _models(pattern: str | None) -> "Table":
    from resode.analysis.costs import network_cost
    from resode.models import models

    rows: Rows = []
    for name in _matching(models.names(), pattern):
        entry = models.entry(name)
        if entry.shape is None or entry.required:
            rows.append((name, "", "", "", entry.summary))
            continue
        cost, shape = network_cost(entry.build, entry.shape), "x".join(map(str, entry.shape))
        work = f"{(cost.multiply_adds or 0) / 1e6:,.1f} M"
        rows.append((name, f"{cost.parameters:,}", work, shape, entry.summary))
    return _table(rows, "models", "parameters", "multiply-adds", "input", "")


def _pretrained(pattern: str | None) -> "Table":
    """Weights that evaluate, predict, export, twist, analyze and --init take by name."""
    from resode import pretrained, weights
    from resode.quantities import count, percent, size

    rows: Rows = []
    for name in _matching(pretrained.names(), pattern):
        file = pretrained.file(name)
        assert file is not None
        card = weights.read_card(file)
        training, model = card.training, card.specification.name if card.specification else ""
        figures = (
            percent(training.get("test_error")),
            str(training.get("data")),
            count(training.get("epochs")),
        )
        rows.append((name, *figures, str(training.get("seed")), size(file.stat().st_size), model))
    return _table(rows, "pretrained weights", "test error", "data", "epochs", "seed", "size", "model")


def _recipes(pattern: str | None) -> "Table":
    from resode.training import Experiment
    from resode.training.recipe.reading import recipes

    rows: Rows = []
    for name in _matching(recipes(), pattern):
        experiment = Experiment.from_recipe(name)
        published = experiment.about.published
        error = f"{published.top1_error:.2f} %" if published else ""
        rows.append((name, str(experiment.epochs), error, experiment.about.summary))
    return _table(rows, "recipes", "epochs", "published error", "")


def _fields(pattern: str | None) -> "Table":
    from resode.fields import fields

    rows: Rows = []
    for name in _matching(fields.names(), pattern):
        entry = fields.entry(name)
        equation, _, norm = ("" if entry.required else entry.build().equation).partition(", N = ")
        rows.append((name, equation, norm.partition("(")[0] or "none", _without_equation(entry.summary)))
    return _table(rows, "fields", "f(y)", "N", "")


def _without_equation(summary: str) -> str:
    """A summary without the equation that it begins with."""
    equation, colon, rest = summary.partition(": ")
    return rest if colon and "(" in equation else summary


def _integrators(pattern: str | None) -> "Table":
    from resode.integrators import integrators

    rows: Rows = []
    for name in _matching(integrators.names(), pattern):
        entry = integrators.entry(name)
        if entry.required:
            rows.append((name, "", "", entry.summary))
        else:
            scheme = entry.build()
            rows.append((name, str(scheme.order or "-"), scheme.equation, entry.summary))
    return _table(rows, "integrators", "order", "one step", "")


def _data(pattern: str | None) -> "Table":
    from resode.data import sources

    rows: Rows = [(name, sources.entry(name).summary) for name in _matching(sources.names(), pattern)]
    return _table(rows, "data", "")
