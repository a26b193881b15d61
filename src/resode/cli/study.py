"""`resode study`: many runs from one file."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from resode.cli.completion import study_files
from resode.cli.options import PluginOption
from resode.plugins import load_plugins

if TYPE_CHECKING:
    from resode.study import Job, Progress, Study


def study(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The study: a YAML file.", autocompletion=study_files)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of its runs (default: studies/NAME).")
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", metavar="N", min=0, help="Runs at a time (0: one per core, or what the cluster allows)."
        ),
    ] = 0,
    executor: Annotated[
        Literal["slurm", "local"] | None,
        typer.Option(
            "--executor",
            help="slurm: submit each run as a job and return; local: the same on this machine, for a trial.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their states; train nothing.")
    ] = False,
    plugin: PluginOption = None,
) -> None:
    """Train every arm of a study with every seed, then compare them.

    A study file names a recipe, arms, a grid of settings, and seeds:

        name: widths
        recipe: quickstart
        set: {epochs: 5}
        arms: {plain: {}, wide: {set: {model.widths: [32, 64, 128]}}}
        seeds: [0, 1, 2]

    `choose: validation` prints the arm with the smallest error on held-out images; no run sees test images.
    After an interruption the same command continues; finished runs are not repeated.

    On a SLURM cluster (`--executor slurm`) the section `slurm` gives the resources of a run:

        slurm: {partition: gpu, minutes: 240, gpus: 1, cpus: 8, memory: 32G}

    and account, qos, setup (a list of shell commands) and sbatch (other options of sbatch). The same command
    shows the state of the jobs, resubmits those that ended early, and compares finished runs.

    Examples:

        resode study widths.yaml

        resode study widths.yaml --jobs 2 --out studies/again

        resode study widths.yaml --dry-run

        resode study widths.yaml --executor slurm --jobs 16

    \f
    """
    plugins = [Path(each["path"]) for each in load_plugins(plugin)]
    from resode.study import read

    plan = read(file)
    planned, folder = plan.jobs(plugins), out or Path("studies") / plan.name
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
        except ResodeError as error:  # the error that stopped the study matters more
            note(f"not compared: {error}")
        raise
    _compare(plan, planned, folder)


def _execute(plan: "Study", planned: "tuple[Job, ...]", folder: Path, jobs: int) -> None:
    from resode.cli.console import note
    from resode.study import cluster, execute
    from resode.study.execution import default_parallel, unfinished

    cluster.refuse_queued(planned, folder)
    left = unfinished(planned, folder)
    parallel = jobs or default_parallel(left)
    note(f"{plan.name}: {len(planned)} runs in {folder}, {left} to do, {parallel} at a time")
    execute(planned, folder, parallel=parallel, progress=_narrator(), study=plan)


def _submit(
    plan: "Study", planned: "tuple[Job, ...]", folder: Path, jobs: int, executor: Literal["slurm", "local"]
) -> None:
    from resode.cli.console import note
    from resode.study import cluster

    found = cluster.submit(
        planned, folder, plan.slurm, name=plan.name, executor=executor, parallel=jobs, report=note, study=plan
    )
    if any(each.state != "finished" for each in found):
        note("the jobs run in the background; the same command shows them and compares finished runs")


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
    """Show the comparison of finished runs, and write it beside them."""
    from resode.cli.compare import show
    from resode.cli.console import note, say
    from resode.report import outcome
    from resode.study.execution import unfinished

    found = outcome.write(folder, {folder / job.folder for job in planned})
    if found is None:
        return
    show(found.comparison)
    left = unfinished(planned, folder)
    if left:
        note(f"{left} of {len(planned)} runs are not finished; the same command continues")
    best = found.best_on_validation if plan.choose is not None and not left else None
    if best is not None and best.validation is not None:
        say(
            f"chosen on the held-out images: {best.name} ({best.validation.mean:.2f} % validation error, "
            f"{best.validation.n} seeds)" + ("" if found.test_seen else "; no run has seen the test images")
        )
    note(f"table: {found.markdown}, {found.csv}; report: {found.page}")


def _narrator() -> "Progress":
    """Prints the progress of a study on stderr, a line per event."""
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
