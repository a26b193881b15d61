"""`resode report`: a page about a run or a study."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from resode.cli.completion import network_names
from resode.errors import ResourceError


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A run or a study, finished or not, or a .safetensors file.",
            autocompletion=network_names,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The page (default: PATH/report.html, or beside the file)."
        ),
    ] = None,
) -> None:
    """Print the result of a run or a study and write a self-contained page about it.

    The page of a study (a folder of runs) shows the error of every run, accuracy against cost, learning
    curves and confusions, and lists where protocols differ.

    Examples:

        resode report runs/r20

        resode report runs/r20 --out r20.html

        resode report studies/widths

    \f
    """
    from resode import report as reports
    from resode.cli.console import note
    from resode.cli.console import out as stdout
    from resode.training.records.reader import read, unsealed_note

    if reports.is_study(run):
        from resode.cli.compare import show

        study = reports.read_study(run)
        with _without_a_place(out):
            note(f"report: {reports.write_study(study, out)}")
        if study.comparison is not None:
            show(study.comparison)
        records = [each for group in study.groups for each in group.runs.values()]
    else:
        records = [read(run)]
        with _without_a_place(out):
            note(f"report: {reports.write(run, out)}")
        stdout.print(reports.table(run))
    if line := unsealed_note(records):
        note(line)


@contextlib.contextmanager
def _without_a_place(out: Path | None) -> Iterator[None]:
    """Where the page cannot be written beside a run, which may be read-only, the result is still printed."""
    from resode.cli.console import note

    try:
        yield
    except ResourceError as error:
        if out is not None:
            raise
        note(f"no page was written: {error}; --out FILE names another place")
