"""`resode study`: many runs from one file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from resode.study import Job, Progress, Study


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study: a YAML file.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where its runs lie (default studies/NAME).")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=0, help="Runs at a time (0: one for each core).")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs, and which are finished; train nothing.")
    ] = False,
) -> None:
    """Train every arm of a study with every seed, then compare them.

    A study file names a recipe, arms, a grid of settings, and seeds:

        name: widths
        recipe: quickstart
        set: {epochs: 5}
        arms: {plain: {}, wide: {set: {model.widths: [32, 64, 128]}}}
        seeds: [0, 1, 2]

    `choose: validation` names the arm of the least error on held-out images; its runs never see test images.
    Stopped or killed, the same command goes on; what is finished is not repeated.

    Examples:

        resode study widths.yaml

        resode study widths.yaml --jobs 2 --out studies/again

        resode study widths.yaml --dry-run

    \f
    """
    from resode.study import execute, read

    plan = read(file)
    planned, folder = plan.jobs(), out or Path("studies") / plan.name
    if dry_run:
        _list(planned, folder)
        return
    from resode import durable
    from resode.cli.console import note
    from resode.study.execution import unfinished

    parallel = jobs or _parallel(unfinished(planned, folder))
    note(
        f"{plan.name}: {len(planned)} runs in {folder}, {unfinished(planned, folder)} to do, "
        f"{parallel} at a time"
    )
    with durable.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        execute(planned, folder, parallel=parallel, progress=_narrator())
    finally:
        _compare(plan, planned, folder)


def _parallel(left: int) -> int:
    """One run a core, each on one thread, does more than one on all; a GPU is not shared unasked."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, min(left, os.cpu_count() or 1))


def _list(planned: "tuple[Job, ...]", folder: Path) -> None:
    from resode.cli.console import say
    from resode.training.runs import Run

    for job in planned:
        run = Run(folder / job.folder)
        state = "finished" if run.finished else "begun" if run.exists else "to do"
        say(f"{state:<9} {folder / job.folder}   resode train {' '.join(job.words)}")


def _compare(plan: "Study", planned: "tuple[Job, ...]", folder: Path) -> None:
    """Show what is finished; write it beside the runs."""
    from resode import durable
    from resode.cli.compare import show
    from resode.cli.console import note, say
    from resode.report import comparison as comparing
    from resode.report import tables
    from resode.report.run import read as read_run
    from resode.study.execution import unfinished
    from resode.training.runs import Run

    groups: dict[str, dict[int, Any]] = {}
    for job in planned:
        if Run(folder / job.folder).exists:
            groups.setdefault(job.arm, {})[job.seed] = read_run(folder / job.folder)
    made = [comparing.Group(arm, runs) for arm, runs in groups.items()]
    if not any(group.finished for group in made):
        return
    found = comparing.compare(made, "validation" if plan.choose else "test")
    show(found)
    durable.write_text(folder / "comparison.md", tables.as_markdown(found))
    durable.write_text(folder / "comparison.csv", tables.as_csv(found))
    left = unfinished(planned, folder)
    if left:
        note(f"{left} of {len(planned)} runs are not finished; the same command goes on")
    if plan.choose is not None and not left:
        best = min(found.rows, key=lambda row: row.validation.mean if row.validation else float("inf"))
        if best.validation is not None:
            say(
                f"chosen on the held-out images: {best.name} ({best.validation.mean:.2f} % validation error, "
                f"{best.validation.n} seeds); no run has seen the test images"
            )
    note(f"table: {folder / 'comparison.md'}, {folder / 'comparison.csv'}")


def _narrator() -> "Progress":
    """Progress on stderr, a line a run."""
    from resode.cli.console import note
    from resode.quantities import duration
    from resode.study import Progress

    class Narrator(Progress):
        def started(self, job: "Job", left: int) -> None:
            note(f"{job.folder} begins ({left} left)")

        def finished(self, job: "Job", summary: Mapping[str, Any]) -> None:
            kind = "test" if summary.get("test") else "validation"
            scores = summary.get(kind)
            error = f"{scores['top1_error']:.2f} % {kind} error, " if scores else ""
            note(f"{job.folder}: {error}{duration(summary.get('seconds'))}")

        def failed(self, job: "Job", message: str) -> None:
            note(f"failed: {message}")

    return Narrator()
