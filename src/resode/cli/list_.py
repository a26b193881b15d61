"""`resode list`: models, pretrained weights, recipes, fields, integrators and data, by name."""

import textwrap
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from typing import Annotated, Literal

import typer

from resode.cli.completion import matching_names
from resode.cli.listing import listing, say, width
from resode.cli.options import PluginOption
from resode.errors import InputError
from resode.plugins import load_plugins

Rows = list[tuple[str, ...]]


def list_(
    kind: Annotated[
        Literal["models", "recipes", "fields", "integrators", "data"] | None,
        typer.Argument(metavar="[KIND]", help="What to list (default: all)."),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]",
            help="Part of a name, or a pattern like 'he_*'.",
            autocompletion=matching_names,
        ),
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
    listings: dict[str, tuple[Callable[[str | None], str], ...]] = {
        "models": (lambda chosen: _models(chosen, with_plugins=bool(plugin)), _pretrained),
        "recipes": (_recipes,),
        "fields": (_fields,),
        "integrators": (_integrators,),
        "data": (_data,),
    }
    tables = [each(pattern) for name in (listings if kind is None else (kind,)) for each in listings[name]]
    found = list(filter(None, tables))
    if not found:
        raise InputError(f"nothing is called '{pattern}'; `resode list` shows all names")
    say("\n\n".join(found))


def _matching(names: Iterable[str], pattern: str | None) -> Iterator[str]:
    return (name for name in names if pattern is None or pattern in name or fnmatch(name, pattern))


def _table(
    rows: Rows, *heads: str, right: tuple[str, ...] = (), texts: int = 1, one_line: bool = False
) -> str:
    if not rows:
        return ""
    return listing(heads, rows, right=right, texts=texts, one_line=one_line, width=width())


def _models(pattern: str | None, *, with_plugins: bool) -> str:
    from resode import catalogue

    known = catalogue.models()
    if with_plugins:
        from resode.analysis.costs import model_facts
        from resode.models import models

        known |= {name: model_facts(name) for name in models.names() if name not in known}
    rows: Rows = []
    for name in _matching(known, pattern):
        facts = known[name]
        if facts.cost is None or facts.shape is None:
            rows.append((name, "", "", "", facts.summary))
            continue
        shape = "x".join(map(str, facts.shape))
        rows.append((name, f"{facts.cost.parameters:,}", facts.cost.work, shape, facts.summary))
    numbers = ("parameters", "multiply-adds", "input")
    return _table(rows, "models", *numbers, "", right=numbers)


def _pretrained(pattern: str | None) -> str:
    """Weights that evaluate, predict, export, twist, analyze and --init take by name."""
    from resode import catalogue, pretrained
    from resode.quantities import percent, size

    rows: Rows = []
    for name, facts in catalogue.pretrained().items():
        if name in _matching([name], pattern):
            bytes_ = (pretrained.FOLDER / f"{name}.safetensors").stat().st_size
            error = percent(facts.test_error)
            rows.append(
                (name, error, str(facts.epochs), str(facts.seed), size(bytes_), facts.data, facts.model)
            )
    numbers = ("test error", "epochs", "seed", "size")
    return _table(rows, "pretrained weights", *numbers, "data", "model", right=numbers)


def _recipes(pattern: str | None) -> str:
    from resode import recipes
    from resode.training.recipe import reading

    rows: Rows = []
    remarks: list[str] = []
    for name in _matching(recipes.files(), pattern):
        values = reading.read(name)
        about = values["about"]
        error = f"{about['published']['top1_error']:.2f} % " if about.get("published") else ""
        if error and (remark := about["published"].get("measured")):
            error = f"{error[:-1]}*"
            remarks.append(remark)
        rows.append((name, str(values["epochs"]), error, about["summary"]))
    numbers = ("epochs", "published")
    listed = _table(rows, "recipes", *numbers, "", right=numbers, one_line=True)
    if not remarks:
        return listed
    remark = f"* measured otherwise than after the last epoch: {', '.join(sorted(set(remarks)))}"
    return "\n".join((listed, *textwrap.wrap(remark, width() or 10_000, subsequent_indent="  ")))


def _fields(pattern: str | None) -> str:
    from resode.fields import fields

    rows: Rows = []
    for name in _matching(fields.names(), pattern):
        entry = fields.entry(name)
        equation, _, norm = ("" if entry.required else entry.build().equation).partition(", N = ")
        rows.append((name, norm.partition("(")[0] or "none", equation, _without_equation(entry.summary)))
    return _table(rows, "fields", "N", "f(y)", "", texts=2)


def _without_equation(summary: str) -> str:
    """A summary without the equation that it begins with."""
    equation, colon, rest = summary.partition(": ")
    return rest if colon and "(" in equation else summary


def _integrators(pattern: str | None) -> str:
    from resode.integrators import integrators

    rows: Rows = []
    for name in _matching(integrators.names(), pattern):
        entry = integrators.entry(name)
        if entry.required:
            rows.append((name, "", "", entry.summary))
        else:
            scheme = entry.build()
            rows.append((name, str(scheme.order or "-"), scheme.equation, entry.summary))
    return _table(rows, "integrators", "order", "one step", "", right=("order",), texts=2)


def _data(pattern: str | None) -> str:
    from resode.data import sources

    rows: Rows = [(name, sources.entry(name).summary) for name in _matching(sources.names(), pattern)]
    return _table(rows, "data", "")
