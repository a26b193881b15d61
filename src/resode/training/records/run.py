"""A run: one directory that holds all that a training left behind, one process at a time.

`experiment.yaml` (resolved), `environment.json`, `metrics.csv` (a row an epoch), `checkpoints/`,
`model.safetensors` and `summary.json` (when finished), `report.html`.
"""

import csv
import fcntl
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy
import torch
from torch import Tensor

from resode import atomic, pretrained, weights
from resode.errors import InputError, IntegrityError, ResourceError, nearest
from resode.training.recipe.experiment import Experiment
from resode.training.records import checkpoints
from resode.version import __version__

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
    """The paths of a run directory, and reading and writing them."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    @property
    def exists(self) -> bool:
        """Whether a run has been started here."""
        return (self.path / "experiment.yaml").is_file()

    @property
    def finished(self) -> bool:
        """Whether the run here came to its end."""
        return (self.path / "summary.json").is_file() and self.model.is_file()

    def lock(self) -> IO[str]:
        """Take the directory for this process, until the file that is returned is closed.

        Raises:
            InputError: another process trains here.
            ResourceError: the directory cannot be written.
        """
        with atomic.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise InputError(f"{self.path}: another process is training here; choose another --out") from None
        return file

    def require_space(self, needed: int) -> None:
        """Refuse to start where the disk has no room for the checkpoints."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ResourceError(
                f"{self.path}: {needed / 1e6:.0f} MB are needed for checkpoints, {free / 1e6:.0f} MB are free"
            )

    def write_experiment(self, experiment: Experiment) -> None:
        """Store the resolved experiment."""
        atomic.write_text(self.path / "experiment.yaml", experiment.to_yaml())

    def read_experiment(self) -> Experiment:
        """The resolved experiment."""
        return Experiment.from_recipe(self.path)

    def write_rows(self, rows: list[dict[str, str]]) -> None:
        """Write metrics.csv whole (a few kilobytes, once an epoch)."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic.write_text(self.path / "metrics.csv", text.getvalue())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Store the result; from here on the run counts as finished."""
        atomic.write_json(self.path / "summary.json", dict(summary))

    def read_summary(self) -> dict[str, Any]:
        """The result of a finished run."""
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


def weights_file(path: str | Path) -> Path:
    """The weights that PATH stands for: a .safetensors file, a checkpoint, a run, or a name that is shipped.

    Of a run these are its final weights, or those of its newest checkpoint while it is not finished. What is
    there as a path comes before what is shipped.

    Raises:
        InputError: nothing is there.
        IntegrityError: a checkpoint whose content is not what its manifest lists.
    """
    name, path = str(path), Path(path)
    if not path.exists():
        if (found := pretrained.file(name)) is not None:
            return found
        raise InputError(f"{path}: no such run, checkpoint or file{nearest(name, pretrained.names())}")
    if path.is_file():
        return path
    if (path / checkpoints.MANIFEST).is_file():
        checkpoints.verify(path)
        return path / checkpoints.MODEL
    run = Run(path)
    if run.model.is_file():
        return run.model
    checkpoint, _ = checkpoints.newest(run.checkpoints)
    if checkpoint is None:
        raise InputError(f"{path}: holds no run (no model.safetensors, no checkpoints)")
    return checkpoint.model


@dataclass(frozen=True)
class Source:
    """What PATH holds beside weights: the experiment of its run, and the state of the optimizer.

    Args:
        weights: the file, as `weights_file` finds it.
        experiment: of the run that it lies in; None of a file by itself.
        optimizer: `<state>/<parameter>` -> tensor, of the newest checkpoint; empty where there is none.
    """

    weights: Path
    experiment: Experiment | None
    optimizer: Mapping[str, Tensor]


def source_of(path: str | Path) -> Source:
    """What a run, a checkpoint or a .safetensors file holds.

    Raises:
        InputError: nothing is there.
        IntegrityError: a checkpoint whose content is not what its manifest lists.
    """
    file, path = weights_file(path), Path(path)
    if not path.is_dir():
        return Source(file, None, {})
    checkpoint: checkpoints.Checkpoint | None
    if (path / checkpoints.MANIFEST).is_file():
        checkpoint, run = checkpoints.read(path), Run(path.resolve().parent.parent)
    else:
        checkpoint, run = checkpoints.newest(path / "checkpoints")[0], Run(path)
    training = checkpoint.training if checkpoint is not None else {}
    prefix = "optimizer/"
    state = {name.removeprefix(prefix): t for name, t in training.items() if name.startswith(prefix)}
    return Source(file, run.read_experiment() if run.exists else None, state)


def load(path: str | Path) -> weights.Loaded:
    """The network of a run, a checkpoint, a .safetensors file or shipped weights, with its preprocessing.

    As `resode.weights.load`, which see, but PATH may be a directory that `resode train` wrote, or a name that
    `resode list models` shows, such as "short/resnet20".
    """
    return weights.load(weights_file(path))


def format_row(values: Mapping[str, float | int | None]) -> dict[str, str]:
    """One row of metrics.csv: shortest decimal that reads back to the same number; empty = not measured."""
    return {column: "" if values.get(column) is None else repr(values[column]) for column in COLUMNS}


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Versions, hardware, threads, processes and commit, for the record."""
    return {
        "resode": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": _cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "command": _command(),
    }


def _command() -> list[str] | None:
    """The command line, `python -m resode` as `resode`; None for a program of one's own."""
    called = Path(sys.argv[0])
    name = called.parent.name if called.name == "__main__.py" else called.name
    return ["resode", *sys.argv[1:]] if name in ("resode", "resode.exe") else None


def _cpu_capability() -> str:
    """The instructions that torch's kernels use, and what the processor multiplies bf16 with."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    half = ", AMX bf16" if known.get("amx_bf16") else ", AVX512 bf16" if known.get("avx512_bf16") else ""
    return torch.backends.cpu.get_cpu_capability() + half


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The commit of the source tree that runs (`-dirty` where it was changed); None if it is no checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        known = subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            timeout=5,
            check=False,
        )
        if known.returncode != 0:  # installed: a repository around it is not ours
            return None
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        answer = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
