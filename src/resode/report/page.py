"""The page of a run: one self-contained HTML file, without scripts, fonts, images or network access.

Templates escape everything that comes from files. The same run gives the same bytes.
"""

import json
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from resode import atomic, quantities
from resode.errors import InputError
from resode.report import classes, curves, depth, dynamics, headline, templating
from resode.training.records.reader import EpochRow, RunRecord, read
from resode.training.records.run import call_to_resume, given_in_python


def write(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, finished or not, and return its path.

    Args:
        run: the run directory or a weights file; the commands on the page show this path.
        out: the file to write atomically (default: `report.html` in the run directory, or beside the file).

    Raises:
        InputError: `run` is not a run directory, or `out` is a directory.
        IntegrityError: a file of the run is damaged.
        ResourceError: the page cannot be written.
    """
    run = Path(run)
    if out is None:
        out = run.with_suffix(".html") if run.is_file() else run / "report.html"
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out}: a directory; name a file for the report, such as {out / 'report.html'}")
    page = render(read(run)).encode("utf-8", "replace").decode()  # a lone surrogate cannot be written
    atomic.write_text(out, page)
    return out


def render(run: RunRecord) -> str:
    """The page as a string."""
    result = run.result
    return templating.render(
        "run.html",
        run=run,
        result=result,
        title=run.title,
        figures=headline.figures(run),
        protocol=headline.protocol(run),
        splits=headline.splits(run),
        curves=curves.of_run(run),
        columns=_columns(run),
        dynamics=dynamics.of_weights(run.path),
        depth=None if (found := depth.read(run.path)) is None else depth.Section(found),
        classes=classes.rows(result.test) if result.test else (),
        matrix=classes.matrix(result.test) if result.test else None,
        cost=_cost(run),
        environment={
            str(key).removesuffix("_bytes").replace("_", " "): _plain(str(key), value)
            for key, value in run.environment.items()
            if value is not None
        },
        commands=_commands(run),
    )


def _columns(run: RunRecord) -> dict[str, list[str]]:
    """The table of epochs by column, without empty columns."""
    make: dict[str, Callable[[EpochRow], str]] = {
        "epoch": lambda e: quantities.count(e.epoch),
        "iterations": lambda e: quantities.count(e.iterations),
        "learning rate": lambda e: quantities.number(e.learning_rate),
        "train loss": lambda e: quantities.number(e.train_loss),
        "train error": lambda e: quantities.percent(e.train_error),
        "validation loss": lambda e: quantities.number(e.validation_loss),
        "validation error": lambda e: quantities.percent(e.validation_error),
        "time": lambda e: quantities.duration(e.seconds),
        "images/s": lambda e: quantities.number(e.images_per_second),
        "peak memory": lambda e: quantities.size(e.peak_memory_bytes),
    }
    columns = {name: [cell(epoch) for epoch in run.epochs] for name, cell in make.items()}
    for name in dict.fromkeys(name for epoch in run.epochs for name in epoch.further):
        columns[name] = [quantities.number(epoch.further.get(name)) for epoch in run.epochs]
    return {name: cells for name, cells in columns.items() if any(c != quantities.MISSING for c in cells)}


def _cost(run: RunRecord) -> dict[str, str]:
    """Parameters, time, speed and memory; for an unfinished run, those of the epochs so far."""
    result, epochs = run.result, run.epochs
    times = [e.seconds for e in epochs if e.seconds is not None]
    speeds = [e.images_per_second for e in epochs if e.images_per_second is not None]
    peaks = [e.peak_memory_bytes for e in epochs if e.peak_memory_bytes is not None]
    seconds = result.seconds if result.seconds is not None else (sum(times) if times else None)
    speed = result.images_per_second
    if speed is None and speeds:
        speed = speeds[-1]
    peak = result.peak_memory_bytes if result.peak_memory_bytes is not None else max(peaks, default=None)
    cost = {
        "parameters": quantities.count(result.parameters),
        "total time" if run.finished else "time so far": quantities.duration(seconds),
        "training time": quantities.duration(result.training_seconds),
        "training images per second": quantities.number(speed),
        "peak memory": quantities.size(peak),
    }
    return {name: value for name, value in cost.items() if value != quantities.MISSING}


def _commands(run: RunRecord) -> dict[str, str]:
    """Commands for the next steps, by title."""
    path = shlex.quote(str(run.path))
    if run.path.is_file():
        return {
            "Evaluate": f"resode evaluate {path}",
            "Predict": f"resode predict {path} IMAGE...",
            "Use in Python": f"import resode; model = resode.load({str(run.path)!r})",
        }
    given = given_in_python(run.experiment)
    if given:
        return _calls(run, given)
    commands = {}
    if not run.finished and (run.end is None or run.end.status != "diverged"):
        commands["Resume"] = f"resode train {path} --out {path} --resume"
    if run.finished or run.checkpoints:
        commands["Evaluate"] = f"resode evaluate {path}"
        commands["Predict"] = f"resode predict {path} IMAGE..."
    if run.weights:
        file = str(run.path / "model.safetensors")
        commands["Use in Python"] = f"import resode; model = resode.load({file!r})"
    if run.finished:
        commands["Repeat the run"] = f"resode train {path} --out {shlex.quote(str(run.path) + '-again')}"
    return commands


def _calls(run: RunRecord, given: Collection[str]) -> dict[str, str]:
    """Calls for the next steps of a run whose network, data or loss only a program has."""
    path, calls = repr(str(run.path)), {}
    net = f"resode.load({path}, into=net)" if "net" in given else f"resode.load({path})"
    if not run.finished:
        calls["Resume"] = call_to_resume(run.path, given)
    if run.finished or run.checkpoints:
        calls["Use in Python"] = f"import resode; net = {net}"
        calls["Evaluate"] = f"resode.evaluate(net{', (images, labels)' if 'data' in given else ''})"
        calls["Predict"] = "resode.predict(net, images)"
    return calls


def _plain(key: str, value: Any) -> str:
    """A value of environment.json as text."""
    if key.endswith("_bytes") and isinstance(value, int):
        return quantities.size(value)
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return shlex.join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
