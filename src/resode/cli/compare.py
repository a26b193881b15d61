"""`resode compare`: runs side by side."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resode.cli.options import JsonOption, choice
from resode.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from resode.report.comparison import Comparison, Group


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of them (a study, say).")
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="ARM", help="Which arm the others are compared with (the first)."),
    ] = None,
    on: Annotated[
        str, typer.Option("--on", metavar="S", help="Differences on the test or the validation images.")
    ] = "test",
    as_: Annotated[str, typer.Option("--as", metavar="F", help="table, markdown or csv.")] = "table",
    json_: JsonOption = False,
) -> None:
    """Compare runs: errors of the last epoch over seeds, paired differences, and what each arm cost.

    Runs that differ in their seed alone are one arm: mean, standard deviation, interval. Arms are
    compared over the seeds that they share. Where data, split, epochs or augmentation differ, it says so.

    Examples:

        resode compare runs/a-seed0 runs/a-seed1 runs/b-seed0 runs/b-seed1

        resode compare studies/states --base euler --as markdown

        resode compare runs/ --json

    \f
    """
    choice("--as", as_, ("table", "markdown", "csv"))
    choice("--on", on, ("test", "validation"))
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
    """The groups, that which the others are compared with first."""
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
    """Print a comparison, as two tables where one is too wide; what has to be known of it goes to stderr."""
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
    """Some columns of a table, the first folded where there is no room; an interval has a line of its own."""
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
    """A figure, and below it what stands in brackets."""
    return cell.replace(" [", "\n[").replace(" (", "\n(")
