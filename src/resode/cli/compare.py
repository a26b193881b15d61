"""`resode compare`: runs side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resode.cli.completion import network_names
from resode.cli.options import JsonOption

if TYPE_CHECKING:
    from resode.report.comparison import Comparison


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
    differences: Annotated[
        bool, typer.Option("--differences", help="List every value in which protocols differ.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Compare runs: errors of the last epoch over seeds, paired differences, and the cost of each arm.

    Runs that differ only in their seed form one arm, with mean, standard deviation and 95 % interval.
    Differences to the first arm are paired over common seeds. Differing data, splits, epochs or augmentation
    are reported. Of equal runs one is kept.

    Examples:

        resode compare runs/a-seed0 runs/a-seed1 runs/b-seed0 runs/b-seed1

        resode compare studies/states --base euler --as markdown

        resode compare runs/ --differences

        resode compare runs/ --json

    \f
    """
    from resode.cli.console import note
    from resode.report import comparison as comparing
    from resode.report import tables
    from resode.training.records.reader import unsealed_note

    groups = comparing.grouped(runs)
    if base is not None:
        groups = comparing.with_base(groups, base)
    found = comparing.compare(groups, on)
    if json_:
        print(json.dumps({"rows": tables.records(found), "remarks": found.remarks}, ensure_ascii=False))
        return
    if line := unsealed_note(run for group in groups for run in group.runs.values()):
        note(line)
    if as_ == "markdown":
        print(tables.as_markdown(found, brief=not differences), end="")
    elif as_ == "csv":
        print(tables.as_csv(found), end="")
        for text in found.remarks if differences else found.brief:
            note(text)
    else:
        show(found, every_difference=differences)


def show(found: "Comparison", *, every_difference: bool = False) -> None:
    """Print a comparison, in several tables if one is too wide; remarks go to stderr.

    Args:
        found: the comparison.
        every_difference: list all values in which protocols differ, not only what differs.
    """
    from resode.cli.console import fitted, note, out, say
    from resode.report.tables import cells, legend

    heads, rows = cells(found)
    lines = [[row[0], *(_lines(cell) for cell in row[1:])] for row in rows]
    for table in fitted([head.replace(" ", "\n", 1) for head in heads], lines, width=out.width):
        out.print(table)
    for text in found.remarks if every_difference else found.brief:
        note(text)
    if found.folded and not every_difference:
        note(f"(`resode compare --differences` lists the {len(found.protocol)} values that differ)")
    say(legend(found))


def _lines(cell: str) -> str:
    """A cell with its bracketed part on a second line."""
    return cell.replace(" [", "\n[").replace(" (", "\n(")
