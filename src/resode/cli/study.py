"""`resode study`: many runs from one file."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.cli.options import choice

if TYPE_CHECKING:
    from resode.study import Job, Progress, Study


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study: a YAML file.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where its runs lie (default studies/NAME).")
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", metavar="N", min=0, help="Runs at a time (0: one for each core; what a cluster lets)."
        ),
    ] = 0,
    executor: Annotated[
        str | None,
        typer.Option(
            "--executor",
            metavar="E",
            help="slurm: submit each run as a job, and return. local: so on this machine, to try it.",
        ),
    ] = None,
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

    On a SLURM cluster (`--executor slurm`) the section `slurm` says what a run asks for:

        slurm: {partition: gpu, minutes: 240, gpus: 1, cpus: 8, memory: 32G}

    beside account, qos, setup (a list of shell commands) and sbatch (its other options). The same command
    shows how the jobs stand, submits again what ended early, and compares what is finished.

    Examples:

        resode study widths.yaml

        resode study widths.yaml --jobs 2 --out studies/again

        resode study widths.yaml --dry-run

        resode study widths.yaml --executor slurm --jobs 16

    \f
    """
    choice("--executor", executor, ("slurm", "local"))
    from resode.study import read

    plan = read(file)
    planned, folder = plan.jobs(), out or Path("studies") / plan.name
    if dry_run:
        _list(plan, planned, folder, executor)
        return
    from resode import atomic
    from resode.cli.console import note
    from resode.errors import ResodeError
    from resode.study.execution import SettingsChanged

    with atomic.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        if executor is None:
            _execute(plan, planned, folder, jobs)
        else:
            _submit(plan, planned, folder, jobs, executor)
    except SettingsChanged:
        raise
    except ResodeError:
        try:
            _compare(plan, planned, folder)
        except ResodeError as error:  # what stopped the study is told first
            note(f"not compared: {error}")
        raise
    _compare(plan, planned, folder)


def _execute(plan: "Study", planned: "tuple[Job, ...]", folder: Path, jobs: int) -> None:
    from resode.cli.console import note
    from resode.study import cluster, execute
    from resode.study.execution import unfinished

    cluster.refuse_queued(planned, folder)
    left = unfinished(planned, folder)
    parallel = jobs or _parallel(left)
    note(f"{plan.name}: {len(planned)} runs in {folder}, {left} to do, {parallel} at a time")
    execute(planned, folder, parallel=parallel, progress=_narrator(), study=plan)


def _submit(plan: "Study", planned: "tuple[Job, ...]", folder: Path, jobs: int, executor: Any) -> None:
    from resode.cli.console import note
    from resode.study import cluster

    found = cluster.submit(
        planned, folder, plan.slurm, name=plan.name, executor=executor, parallel=jobs, report=note, study=plan
    )
    if any(each.state != "finished" for each in found):
        note("the jobs go on by themselves; the same command shows them, and compares what is finished")


def _parallel(left: int) -> int:
    """One run a core, each on one thread, does more than one on all; a GPU is not shared unasked."""
    import torch

    from resode.study.execution import cores

    return 1 if torch.cuda.is_available() else max(1, min(left, cores()))


def _list(plan: "Study", planned: "tuple[Job, ...]", folder: Path, executor: str | None) -> None:
    from resode.cli.console import note, say
    from resode.study import cluster

    statuses = cluster.statuses(planned, folder)
    if executor is not None:
        asked = plan.slurm.model_dump(exclude_none=True, exclude={"setup", "sbatch"})
        words = [f"{key}={value}" for key, value in {**asked, **plan.slurm.sbatch}.items()]
        note(f"{sum(s.due for s in statuses)} jobs would be submitted to {executor}: {', '.join(words)}")
    for each in statuses:
        where = f" (job {each.id})" if each.id else ""
        arguments = shlex.join(each.job.arguments)
        say(f"{each.state + where:<9} {folder / each.job.folder}   resode train {arguments}")


def _compare(plan: "Study", planned: "tuple[Job, ...]", folder: Path) -> None:
    """Show what is finished; write it beside the runs."""
    from resode import atomic
    from resode import report as reports
    from resode.cli.compare import show
    from resode.cli.console import note, say
    from resode.report import tables
    from resode.study.execution import unfinished

    if not reports.is_study(folder):
        return
    study = reports.read_study(folder).of_runs({folder / job.folder for job in planned})
    found = study.comparison
    if found is None:
        return
    show(found)
    atomic.write_text(folder / "comparison.md", tables.as_markdown(found))
    atomic.write_text(folder / "comparison.csv", tables.as_csv(found))
    page = reports.write_study(study)
    left = unfinished(planned, folder)
    if left:
        note(f"{left} of {len(planned)} runs are not finished; the same command goes on")
    if plan.choose is not None and not left:
        best = min(found.rows, key=lambda row: row.validation.mean if row.validation else float("inf"))
        if best.validation is not None:
            seen = any(row.test is not None for row in found.rows)
            say(
                f"chosen on the held-out images: {best.name} ({best.validation.mean:.2f} % validation error, "
                f"{best.validation.n} seeds)" + ("" if seen else "; no run has seen the test images")
            )
    note(f"table: {folder / 'comparison.md'}, {folder / 'comparison.csv'}; report: {page}")


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
