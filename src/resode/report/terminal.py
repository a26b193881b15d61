"""The result of a run as a small table for the terminal."""

from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from resode.quantities import count, duration, number, percent
from resode.training.records.reader import RunRecord, read


def table(run: Path) -> Table:
    """The result of a run: errors, recipe, epochs, initial weights, time, speed, parameters.

    Unknown values are omitted; an unfinished run shows its last epoch.

    Raises:
        InputError: the path is not a run directory.
        IntegrityError: a file in it is damaged.
    """
    found = read(run)
    lines = Table(box=box.SIMPLE_HEAD, title=_printable(found.title), title_justify="left", show_header=False)
    lines.add_column(style="dim")
    lines.add_column(justify="right", no_wrap=True)
    lines.add_column(style="dim")
    for name, value, remark in _rows(found):
        style = "bold" if name == "test error" else ""
        lines.add_row(_printable(name), _printable(value, style), _printable(remark))
    return lines


def _rows(run: RunRecord) -> list[tuple[str, str, str]]:
    result, rows = run.result, []
    if result.test is not None:
        rows.append(("test error", percent(result.test.top1_error), _images(result.test.samples)))
    if result.published is not None:
        rows.append(("published", percent(result.published.top1_error), result.published.source))
    if result.validation is not None:
        rows.append(
            ("validation error", percent(result.validation.top1_error), _images(result.validation.samples))
        )
    elif run.validated is not None:
        rows.append(
            (
                "validation error",
                percent(run.validated.validation_error),
                f"epoch {count(run.validated.epoch)}",
            )
        )
    if run.end is not None:
        rows.append(("", run.end.status, run.end.reason))
    if not run.finished:
        of = f" of {count(result.epochs)}" if result.epochs else ""
        reason = "" if result.stopped is None else f": {result.stopped.reason}"
        rows.append(("epoch", f"{count(run.epoch)}{of}", result.status + reason))
    elif result.epochs is not None:
        rows.append(("epochs", count(result.epochs), ""))
    if run.departures:
        rows.append(("recipe", result.name or "", f"with other {', '.join(run.departures)}"))
    if (start := run.initial_weights) is not None:
        rows.append(("initial weights", *(("random", "") if start == "random" else ("a file", start))))
    if result.seconds is not None:
        rows.append(("time", duration(result.seconds), ""))
    if result.images_per_second is not None:
        rows.append(("speed", number(result.images_per_second), "images/s"))
    if result.parameters is not None:
        rows.append(("parameters", count(result.parameters), ""))
    return rows


def _images(samples: int | None) -> str:
    return "" if samples is None else f"{count(samples)} images"


def _printable(text: str, style: str = "") -> Text:
    """Text without markup and control characters."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text), style=style)
