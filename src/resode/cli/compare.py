"""`resode compare`: runs side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resode.cli.options import JsonOption, choice
from resode.errors import InputError

if TYPE_CHECKING:
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
    """Print a comparison; what has to be known about it goes to stderr."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from resode.cli.console import note, out, say
    from resode.report.tables import cells, legend

    heads, rows = cells(found)
    table = Table(box=box.SIMPLE_HEAD)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)
    for text in found.remarks:
        note(text)
    say(legend(found))
