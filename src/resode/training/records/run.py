"""The run directory: everything that a training leaves behind; one process at a time writes it.

`experiment.yaml` (resolved), `environment.json`, `metrics.csv` (a row an epoch), `checkpoints/`,
`model.safetensors` and `summary.json` (once finished), `ended.json` (stopped or diverged), `report.html`.
"""

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from resode import atomic
from resode.errors import DivergenceError, InputError, IntegrityError, ResourceError, Stopped
from resode.training.recipe.experiment import Experiment

COLUMNS = (
    "epoch",
    "iterations",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "seconds",
    "images_per_second",
    "peak_memory_bytes",
    "function_evaluations",
    "reconstruction_error",
)


@dataclass(frozen=True)
class Run:
    """A run directory: its paths, its lock, and how its files are written and read."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The file of the final weights."""
        return self.path / "model.safetensors"

    @property
    def exists(self) -> bool:
        """Whether a run has been started here."""
        return (self.path / "experiment.yaml").is_file()

    @property
    def finished(self) -> bool:
        """Whether the run here has finished."""
        return (self.path / "summary.json").is_file() and self.model.is_file()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Context manager: hold the directory for this process; the lock ends with the process at the latest.

        Raises:
            InputError: another process is training here.
            ResourceError: the directory cannot be written or locked.
        """
        lock = filelock.FileLock(self.path / ".lock", blocking=False)
        with atomic.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise InputError(
                    f"{self.path}: another process is training here; choose another --out"
                ) from None
        try:
            yield
        finally:
            lock.release()

    def require_space(self, needed: int) -> None:
        """Refuse to start if the disk has less than `needed` bytes free (`ResourceError`)."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ResourceError(
                f"{self.path}: checkpoints need {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB free"
            )

    def write_experiment(self, experiment: Experiment) -> None:
        """Write the resolved experiment."""
        atomic.write_text(self.path / "experiment.yaml", experiment.to_yaml())

    def read_experiment(self) -> Experiment:
        """Read the resolved experiment."""
        return Experiment.from_recipe(self.path)

    def write_rows(self, rows: list[dict[str, str]]) -> None:
        """Rewrite metrics.csv (a few kilobytes, once an epoch)."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic.write_text(self.path / "metrics.csv", text.getvalue())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the result; the run counts as finished from here on."""
        atomic.write_json(self.path / "summary.json", dict(summary))

    @contextlib.contextmanager
    def recording_end(self) -> Iterator[None]:
        """Context manager: write to ended.json why a run within the block stopped or diverged."""
        path = self.path / "ended.json"
        path.unlink(missing_ok=True)
        try:
            yield
        except (Stopped, DivergenceError) as error:
            status = "stopped" if isinstance(error, Stopped) else "diverged"
            atomic.write_json(path, {"status": status, "reason": error.messages[0]})
            raise

    def read_summary(self) -> dict[str, Any]:
        """Read the result of a finished run.

        Raises:
            InputError: the run is not finished.
            IntegrityError: the file is damaged.
        """
        path = self.path / "summary.json"
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.path}: this run is not finished; go on with --resume") from None
        except ValueError:
            raise IntegrityError(f"{path}: is not valid JSON (damaged)") from None
        if not isinstance(summary, dict):
            raise IntegrityError(f"{path}: is not a summary (damaged)")
        return summary


def format_row(values: Mapping[str, float | int | None]) -> dict[str, str]:
    """Format a row of metrics.csv: shortest decimals that read back exactly; empty: not measured."""
    return {column: "" if values.get(column) is None else repr(values[column]) for column in COLUMNS}
