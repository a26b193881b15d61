"""The page of a study: the runs of a folder side by side, as one self-contained HTML file.

Errors of all runs, accuracy against cost, learning curves, confusions. The same runs give the same bytes.
"""

import functools
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from resode import atomic, quantities
from resode.errors import InputError
from resode.report import classes, comparison, curves, scatter, strips, tables, templating
from resode.report.comparison import Comparison, Group
from resode.training.records.reader import EvaluationRecord, RunRecord

COLOURS = 10  # of arms; the next ten are dashed, the next dotted
PLAN = "study.yaml"  # the study file, in the folder of its runs


@dataclass(frozen=True)
class Study:
    """The runs of a folder.

    Args:
        path: the folder.
        groups: runs by arm.
        plan: text of the study file; empty for a mere folder of runs.
        name: name of the study.
        about: its description.
        split: the errors that it compares, `test` or `validation`.
    """

    path: Path
    groups: tuple[Group, ...]
    plan: str
    name: str
    about: str
    split: str

    @functools.cached_property
    def comparison(self) -> Comparison | None:
        """The arms side by side; None while no run has finished."""
        finished = any(group.finished for group in self.groups)
        return comparison.compare(self.groups, self.split) if finished else None

    def of_runs(self, paths: Collection[Path]) -> "Study":
        """The study restricted to these runs."""
        kept = (
            replace(g, runs={seed: run for seed, run in g.runs.items() if run.path in paths}, repeated=())
            for g in self.groups
        )
        return replace(self, groups=tuple(group for group in kept if group.runs))


def is_study(path: Path) -> bool:
    """Whether a path is a folder of runs (and not itself a run)."""
    return path.is_dir() and not (path / "experiment.yaml").is_file() and any(path.rglob("experiment.yaml"))


def read(path: Path) -> Study:
    """Read all runs in a folder, with the study file if it holds one.

    Raises:
        InputError: the folder holds no run.
        IntegrityError: a file of a run is damaged.
    """
    groups = comparison.grouped([path])
    text, plan = _plan(path / PLAN)
    tested = any(run.result.test is not None for group in groups for run in group.finished.values())
    return Study(
        path=path,
        groups=tuple(groups),
        plan=text,
        name=str(plan.get("name") or path.resolve().name),
        about=str(plan.get("about") or ""),
        split="test" if tested and plan.get("choose") is None else "validation",
    )


def _plan(file: Path) -> tuple[str, Mapping[str, Any]]:
    """Text and content of a study file; both empty if it is missing or damaged."""
    try:
        text = file.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return "", {}
    return (text, found) if isinstance(found, Mapping) else ("", {})


def write(study: Study, out: Path | None = None) -> Path:
    """Write the page of a study, finished or not, and return its path.

    Args:
        study: the study, from `read`.
        out: the file to write atomically (default: `report.html` in the folder).

    Raises:
        InputError: `out` is a directory.
        ResourceError: the page cannot be written.
    """
    out = Path(out or study.path / "report.html")
    if out.is_dir():
        raise InputError(f"{out}: a directory; name a file for the report, such as {out / 'report.html'}")
    atomic.write_text(out, render(study).encode("utf-8", "replace").decode())
    return out


def render(study: Study) -> str:
    """The page as a string."""
    groups, split, found = study.groups, study.split, study.comparison
    css = {group.name: _css(place) for place, group in enumerate(groups)}
    rows = found.rows if found else ()
    runs = [(group.name, seed, run) for group in groups for seed, run in group.runs.items()]
    heads, cells = tables.cells(found) if found else ([], [])
    return templating.render(
        "study.html",
        study=study,
        finished=sum(run.finished for *_, run in runs),
        facts=_facts(groups),
        css=css,
        found=found,
        heads=heads,
        cells=cells,
        legend=tables.legend(found) if found else "",
        strips=strips.of_groups(groups, rows, css, split),
        scatters=scatter.of_rows(rows, css, split),
        curves=curves.of_groups(groups, css),
        banded=any(len(group.finished or group.runs) > 1 for group in groups),
        matrices=_matrices(groups, split),
        by_class=_by_class(groups, split),
        runs=runs,
        machines=sorted({_machine(run) for *_, run in runs if run.environment}),
        commands=_commands(study, found),
    )


def _css(place: int) -> str:
    """The CSS classes of an arm: its colour and line style."""
    again = place // COLOURS % 3
    return f"arm{place % COLOURS}" + (f" again{again}" if again else "")


def _facts(groups: Sequence[Group]) -> dict[str, str]:
    """Settings common to all runs; "differs" for those that are not."""
    runs = [run for group in groups for run in group.runs.values()]
    seeds = sorted({seed for group in groups for seed in group.runs})
    facts = {"arms": quantities.count(len(groups)), "seeds": ", ".join(map(str, seeds))}
    for name, path in {
        "data": ("data", "source"),
        "validation split": ("data", "validation"),
        "epochs": ("epochs",),
        "batch size": ("batch_size",),
        "precision": ("precision",),
    }.items():
        values = dict.fromkeys(run.setting(*path) or "" for run in runs)
        facts[name] = next(iter(values)) if len(values) == 1 else "differs"
    return {name: value for name, value in facts.items() if value}


def _matrices(groups: Sequence[Group], split: str) -> list[tuple[str, classes.Matrix]]:
    """The confusion matrix of each arm, summed over its seeds."""
    found = []
    for group in groups:
        summed = _summed(group, split)
        matrix = classes.matrix(summed) if summed else None
        if matrix is not None and matrix.written:
            found.append((group.name, matrix))
    return found


def _by_class(groups: Sequence[Group], split: str) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """The error on each class for every arm, sorted by that of the first arm, largest first."""
    by_arm = {
        group.name: {row.name: 100 - row.accuracy for row in classes.rows(summed)}
        for group in groups
        if (summed := _summed(group, split)) is not None
    }
    if not by_arm:
        return []
    first = next(iter(by_arm.values()))
    return [(name, [(arm, errors.get(name)) for arm, errors in by_arm.items()]) for name in first]


def _summed(group: Group, split: str) -> EvaluationRecord | None:
    """The confusion summed over all finished seeds; None if one lacks it or has other classes."""
    scores = [getattr(run.result, split) for run in group.finished.values()]
    tables_ = [score.confusion for score in scores if score is not None and score.confusion]
    if not tables_ or len(tables_) < len(scores) or len({len(table) for table in tables_}) > 1:
        return None
    size = len(tables_[0])
    total = tuple(tuple(sum(t[i][j] for t in tables_) for j in range(size)) for i in range(size))
    named = {
        name: 100 * total[i][i] / sum(total[i]) if sum(total[i]) else None
        for i, name in enumerate(classes.names(scores[0]))
    }
    images = sum(map(sum, total))
    error = 100 * (1 - sum(total[i][i] for i in range(size)) / images) if images else 0.0
    return EvaluationRecord(top1_error=error, samples=images, per_class=named, confusion=total)


def _machine(run: RunRecord) -> str:
    """`A processor, 2 threads, torch 2.13.0, python 3.11.9`."""
    versions = [
        f"{name} {run.environment[name]}" for name in ("torch", "python") if run.environment.get(name)
    ]
    return ", ".join(filter(None, [comparison.machine(run), *versions]))


def _commands(study: Study, found: Comparison | None) -> dict[str, str]:
    """Commands for the next steps, by title."""
    path = shlex.quote(str(study.path))
    commands = {"Print the table": f"resode compare {path}"}
    if found and len(found.rows) > 1:
        base = shlex.quote(found.rows[1].name)
        commands["Compare with another arm"] = f"resode compare {path} --base {base}"
    commands["Print it as Markdown"] = f"resode compare {path} --as markdown"
    run = next(iter(study.groups[0].runs.values()))
    commands["Report on one run"] = f"resode report {shlex.quote(str(run.path))}"
    return commands
