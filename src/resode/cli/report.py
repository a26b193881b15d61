"""`resode report`: a page about a run."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, finished or not, or a .safetensors file.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page (default RUN/report.html, or beside the file)."),
    ] = None,
) -> None:
    """Print the result of a run and write a self-contained page about it.

    Examples:

        resode report runs/r20

        resode report runs/r20 --out r20.html

    \f
    """
    from resode import report as reports
    from resode.cli.console import note
    from resode.cli.console import out as stdout

    page = reports.write(run, out)
    stdout.print(reports.table(run))
    note(f"report: {page}")
