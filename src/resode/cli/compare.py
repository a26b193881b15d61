"""`resode compare`: runs side by side."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resode.cli.completion import network_names
from resode.cli.options import JsonOption
from resode.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from resode.report.comparison import Comparison, Group


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Runs, or folders of them (a study, say).", autocompletion=network_names
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="ARM", help="The arm that others are compared with (default: the first)."
        ),
    ] = None,
    on: Annotated[
        Literal["test", "validation"], typer.Option("--on", help="Images whose errors are compared.")
    ] = "test",
    as_: Annotated[Literal["table", "markdown", "csv"], typer.Option("--as", help="Format.")] = "table",
    json_: JsonOption = False,
) -> None:
    """Compare runs: errors of the last epoch over seeds, paired differences, and the cost of each arm.

    Runs that differ only in their seed form one arm, with mean, standard deviation and 95 % interval.
    Differences to the first arm are paired over common seeds. Differing data, splits, epochs or augmentation
    are reported.

    Examples:

        resode compare runs/a-seed0 runs/a-seed1 runs/b-seed0 runs/b-seed1

        resode compare studies/states --base euler --as markdown

        resode compare runs/ --json

    \f
    """
    from resode.cli.console import note
    from resode.report import comparison as comparing
    from resode.report import tables

    groups = _with_base(comparing.grouped(runs), base)
    found = comparing.compare(groups, on)
    if json_:
        print(json.dumps({"rows": tables.records(found), "remarks": found.remarks}, ensure_ascii=False))
        return
    if as_ == "markdown":
        print(tables.as_markdown(found), end="")
    elif as_ == "csv":
        print(tables.as_csv(found), end="")
        for text in found.remarks:
            note(text)
    else:
        show(found)


def _with_base(groups: "list[Group]", base: str | None) -> "list[Group]":
    """The groups, the base arm first."""
    if base is None:
        return groups
    chosen = [g for g in groups if g.name == base] or [g for g in groups if base in g.name]
    if len(chosen) != 1:
        names = ", ".join(f"'{group.name}'" for group in (chosen or groups))
        raise InputError(
            f"--base {base}: {'more than one arm' if chosen else 'no arm'} of that name ({names})"
        )
    if not chosen[0].finished:
        raise InputError(f"--base {base}: none of its runs is finished")
    return [chosen[0], *(group for group in groups if group is not chosen[0])]


def show(found: "Comparison") -> None:
    """Print a comparison, in two tables if one is too wide; remarks go to stderr."""
    from resode.cli.console import note, out, say
    from resode.report.tables import COSTS, cells, legend

    heads, rows = cells(found)
    places = range(len(heads))
    whole = _table(heads, rows, places)
    if out.measure(whole, options=out.options.update(width=10**6)).maximum <= out.width:
        out.print(whole)
    else:
        out.print(_table(heads, rows, [place for place in places if heads[place] not in COSTS]))
        out.print(_table(heads, rows, [place for place in places if not place or heads[place] in COSTS]))
    for text in found.remarks:
        note(text)
    say(legend(found))


def _table(heads: list[str], rows: list[list[str]], places: Iterable[int]) -> "Table":
    """The columns at `places`; the first one folds, an interval stands on a line of its own."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place in places:
        first = place == 0
        head = heads[place].replace(" ", "\n", 1)
        table.add_column(
            head, justify="left" if first else "right", vertical="top", no_wrap=not first, overflow="fold"
        )
    for row in rows:
        lines = [row[place] if place == 0 else _lines(row[place]) for place in places]
        table.add_row(*map(Text, lines))
    return table


def _lines(cell: str) -> str:
    """A cell with its bracketed part on a second line."""
    return cell.replace(" [", "\n[").replace(" (", "\n(")
