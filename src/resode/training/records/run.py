"""The run directory: everything that a training leaves behind; one process at a time writes it.

`experiment.yaml` (resolved), `environment.json`, `metrics.csv` (a row an epoch), `checkpoints/`,
`model.safetensors` and `summary.json` (once finished), `ended.json` (stopped or diverged), `report.html`.
"""

import contextlib
import csv
import errno
import io
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from resode import atomic
from resode.errors import DivergenceError, InputError, IntegrityError, ResourceError, Stopped
from resode.registry import IN_PYTHON
from resode.training.recipe.experiment import Experiment
from resode.training.records import checkpoints, seal
from resode.training.records.reader import EpochRow, read_end, read_summary

# What a training writes; `resode report` writes its page without the lock.
FILES = (
    "experiment.yaml",
    "environment.json",
    "metrics.csv",
    "model.safetensors",
    "summary.json",
    "ended.json",
    ".restarts",
)
STOPPED = "stopped"  # the status of a run that a callback ended early
COLUMNS = tuple(name for name in EpochRow.model_fields if name != "further")  # of metrics.csv
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_held: dict[Path, int] = {}  # inode of the lock of each run directory that this process holds


@dataclass(frozen=True)
class Run:
    """A run directory: its paths, its lock, and how its files are written and read."""

    path: Path

    def __repr__(self) -> str:
        try:
            end = read_end(self.path)
            unfinished: str = "unfinished" if end is None else end.status
            state = "finished" if self.finished else unfinished if self.exists else "no run yet"
        except IntegrityError:
            state = "damaged"
        return f"Run('{self.path}'): {state}"

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
        """Whether the run here has finished: it has trained for all of its epochs."""
        if not (self.path / "summary.json").is_file() or not self.model.is_file():
            return False
        return (read_summary(self.path, check=False) or {}).get("status") != STOPPED

    def reopen(self) -> None:
        """Remove the result of a run that a callback had stopped and that now goes on."""
        for file in (self.path / "summary.json", self.model):
            file.unlink(missing_ok=True)

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
            except (NotImplementedError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
                    raise
                raise ResourceError(
                    f"{self.path}: its file system has no locks, so that two processes could train here; "
                    "choose an --out on a local disk"
                ) from error
            _held[self.path] = (self.path / ".lock").stat().st_ino
        try:
            yield
        finally:
            del _held[self.path]
            lock.release()

    def check_held(self) -> None:
        """Raise `ResourceError` where the directory was deleted, moved or replaced since it was locked."""
        try:
            found: int | None = (self.path / ".lock").stat().st_ino
        except OSError:
            found = None
        if found != _held.get(self.path):
            raise ResourceError(f"{self.path}: was deleted or moved while training; nothing more is written")

    def clean(self) -> None:
        """Tidy up after a process that was killed: under the lock, at the start and before resuming.

        Its temporary files go, and the checkpoint that it was writing gets its name if it is whole.
        """
        with atomic.writing(self.path):
            for leftover in atomic.temporaries(self.path, FILES):
                leftover.unlink(missing_ok=True)
        checkpoints.recover(self.checkpoints)

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
        further = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
        writer = csv.DictWriter(text, [*COLUMNS, *further], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic.write_text(self.path / "metrics.csv", text.getvalue())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the result; unless a callback stopped it, the run counts as finished from here on."""
        atomic.write_json(self.path / "summary.json", seal.sealed(self.path, summary))

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
        summary = read_summary(self.path)
        if summary is None:
            raise InputError(f"{self.path}: this run is not finished; go on with --resume")
        return summary


def given_in_python(experiment: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run needs besides its directory, of `net`, `data` and `loss`: a program gave it, no file has it.

    Args:
        experiment: the resolved experiment as plain values.
    """
    data = experiment.get("data")
    source = data.get("source") if isinstance(data, Mapping) else data
    given = {
        "net": "model" in experiment and experiment["model"] is None,
        "data": str(source).endswith(IN_PYTHON),
        "loss": str(experiment.get("loss")).endswith(IN_PYTHON),
    }
    return tuple(name for name, is_given in given.items() if is_given)


def call_to_resume(path: Path, given: Collection[str]) -> str:
    """The call in Python that continues a run with what it needs besides its directory."""
    again = [f"{name}=..." for name in given if name != "net"]
    words = [
        *(["net"] if "net" in given else []),
        repr(str(path)),
        *again,
        f"out={str(path)!r}",
        "resume=True",
    ]
    return f"resode.train({', '.join(words)})"


def format_row(values: Mapping[str, float | int | None]) -> dict[str, str]:
    """Format a row of metrics.csv: shortest decimals that read back exactly; empty: not measured.

    Metrics of callbacks follow the columns that every run has.
    """
    columns = dict.fromkeys([*COLUMNS, *values])
    return {column: "" if values.get(column) is None else repr(values[column]) for column in columns}
