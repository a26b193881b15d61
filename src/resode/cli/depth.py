"""`resode analyze --depth`: measures with progress, and prints tables that fit 80 columns."""

import json
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from resode.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from resode.analysis.depth import Depth
    from resode.analysis.depth.record import Change


def check(depth: bool, others: bool, given: dict[str, object]) -> None:
    """Refuse options that exclude each other, or that only --depth uses."""
    if depth and others:
        raise InputError("--depth: is measured by itself; run it without --pde and --twist")
    for option, value in given.items():
        if value is not None and not depth:
            raise InputError(f"{option}: needs --depth, which classifies images")


def measured(path: str, data: str | None, images: int | None, device: str | None) -> "Depth":
    """The measurement, with progress on stderr."""
    from resode.analysis.depth import depth
    from resode.cli.console import note, waiting
    from resode.progress import reporting_to

    with (
        waiting(f"depth of {path}") as on_progress,
        reporting_to(lambda what, share: on_progress(share) if what.startswith("depth") else None),
    ):
        found = depth(path, data, images=images, device=device or "auto")
    for line in found.notes:
        note(line)
    return found


def written(found: "Depth", folder: Path) -> list[str]:
    """The record and the page."""
    from resode import atomic
    from resode.report import depth as page

    record = folder / page.FILE
    atomic.write_text(
        record, json.dumps(found.record(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    )
    return [str(record), str(page.write(found, folder / "depth.html"))]


def show(found: "Depth") -> None:
    """Print the verdict, its rules and the tables."""
    from resode.cli.console import out, say

    say(
        f"{found.model} on {found.data}: {found.images:,} of {found.of:,} {found.split} images, "
        f"error {found.error:.2f} %"
    )
    for table in (*_changes(found, out.width), *_orders(found, out.width), *_stages(found, out.width)):
        out.print(table)
    say(f"verdict: {found.verdict}")
    for line in filter(None, (found.reason, found.would_decide)):
        say(fill(line, out.width, initial_indent="  ", subsequent_indent="  "))
    say("rules, in this order:")
    for number, line in enumerate(found.thresholds.lines(), start=1):
        say(fill(f"{number}. {line}", out.width, initial_indent="  ", subsequent_indent="     "))
    say(f"{found.passes:.0f} plain forward passes; statistics of norms: {found.statistics}")


def _changes(found: "Depth", width: int) -> "list[Table]":
    from resode.cli.console import fitted

    def row(name: str, change: "Change") -> list[str]:
        d, new = change.increase_kept, change.error_new
        own = name == "as it is"
        interval = "" if own else f"{d.points:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"
        return [name, f"{change.error_kept:.2f} %", interval, "-" if new is None else f"{new:.2f} %"]

    rows = [row("as it is" if r.factor == 1 else f"{r.factor} times the steps", r) for r in found.refinement]
    rows += [row(f"by {swap.scheme}", swap) for swap in found.swaps]
    heads = ("same theta(t)", "test error", "increase [95 %]", "statistics anew")
    return fitted(heads, rows, width=width)


def _orders(found: "Depth", width: int) -> "list[Table]":
    from resode.cli.console import fitted
    from resode.report.depth import needed_order

    rows = []
    for s in found.stages:
        order = "exact" if s.exact else "-"
        if s.observed_order is not None:
            order = f"{s.observed_order:.2f} [{s.observed_low or 0:.2f}, {s.observed_high or 0:.2f}]"
        distances = [_short(s.distances[m]) for m in (1, 2, 4, 8)]
        rows.append([f"{s.stage} {s.scheme}", order, needed_order(s), *distances])
    heads = ("stage", "order", "needed", "distance", "2 n", "4 n", "8 n")
    return fitted(heads, rows, width=width)


def _stages(found: "Depth", width: int) -> "list[Table]":
    from resode.cli.console import fitted

    rows = []
    for s in found.stages:
        units = s.smoothness
        bound = "" if s.growth_bound is None else f" (at most {s.growth_bound:.3g})"
        values = (units.weights, units.p, units.operators, s.reversal, s.growth)
        rows.append([f"{s.stage} {s.field}", f"{units.units}", *map(_short, values)])
        rows[-1][-1] += bound
    heads = ("stage", "units", "S", "p", "S of operators", "reversal", "growth")
    return fitted(heads, rows, width=width)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
