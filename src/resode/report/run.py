"""Run: what a run directory holds, read and checked.

experiment.yaml, environment.json, metrics.csv, summary.json, checkpoints/<iteration>: each may be missing (a
run that goes on, or was stopped, has no summary). What is there must be whole, or reading says what is not.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import torch
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    ValidationError,
    model_validator,
)

from resode import cost, weights
from resode.errors import InputError, IntegrityError

T = TypeVar("T")
LARGEST_COUNT = 10**15
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Percent = Annotated[float, Field(ge=0, le=100)]

FILE = "weights file"  # the status of what comes from a file and no run directory
MARKS = ("experiment.yaml", "metrics.csv", "summary.json")
LARGEST = 64 * 2**20  # bytes of a text file that reading accepts


# ---------------------------------------------------------------- summary.json


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Fit(_Part):
    """The last epoch on the training images: mean loss, accuracy in percent."""

    loss: float | None = None
    accuracy: Percent | None = None

    @property
    def top1_error(self) -> float | None:
        """100 - accuracy, in percent."""
        return None if self.accuracy is None else 100 - self.accuracy


class Evaluated(_Part):
    """An evaluation: errors in percent over `samples` images; `confusion` has a row for each true class."""

    top1_error: Percent
    loss: float | None = None
    samples: Count | None = None
    precision: str | None = None
    per_class: dict[str, Percent | None] | None = None
    confusion: tuple[tuple[Count, ...], ...] | None = None

    @model_validator(mode="after")
    def _one_table(self) -> Self:
        if self.confusion is None:
            return self
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("the confusion matrix is not square")
        if self.per_class is None:
            return self
        if len(self.per_class) != len(self.confusion):
            raise ValueError("per_class and confusion differ in their number of classes")
        for true, (row, given) in enumerate(zip(self.confusion, self.per_class.values(), strict=True)):
            if given is not None and any(row) and abs(100 * row[true] / sum(row) - given) > 0.5:
                raise ValueError(f"per_class contradicts row {true} of the confusion matrix")
        return self


class Used(_Part):
    """The images of a run: source, content hash, how many in each split, what was skipped."""

    name: str | None = None
    fingerprint: str | None = None
    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    skipped: tuple[str, ...] | Count = ()


class Published(_Part):
    """The figure that the recipe reproduces: top-1 test error in percent, and where it stands."""

    top1_error: Percent
    source: str = ""


class Summary(_Part):
    """The result of a run."""

    status: str = "finished"
    name: str | None = None
    model: str | None = None
    parameters: Count | None = None
    seed: int | None = None
    epochs: Count | None = None
    iterations: Count | None = None
    train: Fit | None = None
    validation: Evaluated | None = None
    test: Evaluated | None = None
    seconds: NonNegativeFloat | None = None
    training_seconds: NonNegativeFloat | None = None
    images_per_second: NonNegativeFloat | None = None
    peak_memory_bytes: Count | None = None
    data: Used = Used()
    published: Published | None = None
    expected: str | None = None
    precision: str | None = None
    compile: bool | None = None
    resumes: Count | None = None


# ---------------------------------------------------------------- metrics.csv


@dataclass(frozen=True)
class Epoch:
    """A row of metrics.csv; None where nothing was measured. Accuracies in percent."""

    epoch: int
    iterations: int | None = None
    learning_rate: float | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    function_evaluations: float | None = None
    reconstruction_error: float | None = None

    @property
    def train_error(self) -> float | None:
        """100 - train_accuracy, in percent."""
        return None if self.train_accuracy is None else 100 - self.train_accuracy

    @property
    def validation_error(self) -> float | None:
        """100 - validation_accuracy, in percent."""
        return None if self.validation_accuracy is None else 100 - self.validation_accuracy


_WHOLE = ("epoch", "iterations", "peak_memory_bytes")


# ---------------------------------------------------------------- the run


@dataclass(frozen=True)
class Run:
    """A run directory in memory. `summary` is None until the run has finished."""

    path: Path
    experiment: Mapping[str, Any]
    experiment_text: str
    environment: Mapping[str, Any]
    epochs: tuple[Epoch, ...]
    summary: Summary | None
    checkpoints: tuple[int, ...]
    weights: bool

    @property
    def title(self) -> str:
        """What was trained on what."""
        return " on ".join(
            filter(None, (self.result.model or self.path.resolve().name, self.result.data.name))
        )

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary is not None and self.summary.status in ("finished", FILE)

    @property
    def result(self) -> Summary:
        """The summary; for an unfinished run, what its experiment says already."""
        if self.summary is not None:
            return self.summary
        return Summary(
            status="unfinished",
            name=self.setting("name"),
            model=self.setting("model", "name") or self.setting("model"),
            seed=_whole(self.setting("seed")),
            epochs=_whole(self.setting("epochs")),
            data=Used(name=self.setting("data", "source") or self.setting("data")),
            published=_published(self.experiment),
            expected=self.setting("about", "expected"),
            precision=self.setting("precision"),
        )

    @property
    def epoch(self) -> int:
        """The last epoch that was completed, counted from 1 (0: none yet)."""
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def validated(self) -> Epoch | None:
        """The last epoch after which the held-out images were evaluated."""
        return next((e for e in reversed(self.epochs) if e.validation_accuracy is not None), None)

    def setting(self, *path: str) -> str | None:
        """A setting of the experiment as text, by its path; None where there is none."""
        value: Any = self.experiment
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return str(value) if isinstance(value, str | int | float) and value != "" else None


def read(path: Path) -> Run:
    """Read a run directory, finished or not, or what a weights file says of its run.

    Raises:
        InputError: the path is no run directory.
        IntegrityError: a file in it is damaged; one line names the file and the first mistake.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".safetensors":
        return _of_weights(path)
    _require_run(path)
    text = _text(path / "experiment.yaml")
    metrics = _text(path / "metrics.csv")
    summary = _checked(path / "summary.json", Summary.model_validate)
    return Run(
        path=path,
        experiment=_yaml(path / "experiment.yaml", text),
        experiment_text=text or "",
        environment=_checked(path / "environment.json", dict) or {},
        epochs=() if metrics is None else _epochs(path / "metrics.csv", metrics, whole=summary is not None),
        summary=summary,
        checkpoints=_checkpoints(path / "checkpoints"),
        weights=(path / "model.safetensors").is_file(),
    )


def _of_weights(path: Path) -> Run:
    """What a weights file says of the run that it comes from."""
    card = weights.read_card(path)
    told, specification = card.training, card.specification
    parameters = None
    if specification is not None:
        with torch.device("meta"):
            parameters = cost.parameters(specification.build())
    error = told.get("test_error")
    try:
        summary = Summary(
            status=FILE,
            name=told.get("recipe"),
            model=specification.name if specification else path.name,
            parameters=parameters,
            seed=told.get("seed"),
            epochs=told.get("epochs"),
            test=None if error is None else Evaluated(top1_error=error, samples=told.get("test_samples")),
            data=Used(name=told.get("data"), test=told.get("test_samples")),
        )
    except ValidationError as mistake:
        raise _damaged(path, f"its card: {mistake.errors(include_url=False)[0]['msg']}") from None
    text = yaml.safe_dump(json.loads(card.to_json()), sort_keys=False, allow_unicode=True)
    return Run(path, {}, text, {}, (), summary, (), weights=True)


def _require_run(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: no such directory; name one that `resode train` wrote")
    if not path.is_dir():
        raise InputError(f"{path}: a file, not a run directory; name the directory that `resode train` wrote")
    if not any((path / mark).is_file() for mark in MARKS):
        inside = sorted({str(found.parent) for mark in MARKS for found in path.glob(f"*/{mark}")})
        mend = f"it holds {', '.join(inside[:5])}" if inside else "name one that `resode train` wrote"
        raise InputError(f"{path}: no run directory (none of {', '.join(MARKS)} is in it); {mend}")


def _damaged(path: Path, problem: str) -> IntegrityError:
    one_line = " ".join(problem.split())
    return IntegrityError(f"{path}: {one_line[:300]}; restore the file or run the training again")


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST:
            raise _damaged(path, f"larger than {LARGEST // 2**20} MiB")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, f"not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _checked(path: Path, make: Callable[[Any], T]) -> T | None:
    """The JSON object of a file, through `make`; None where there is no such file."""
    text = _text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise _damaged(path, "not a JSON object")
        return make(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else error
        raise _damaged(path, f"not valid JSON ({problem})") from None


def _yaml(path: Path, text: str | None) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(text or "{}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise _damaged(path, f"not valid YAML{where}") from None
    if not isinstance(values, Mapping):
        raise _damaged(path, "not a mapping of keys to values")
    return values


def _epochs(path: Path, text: str, *, whole: bool) -> tuple[Epoch, ...]:
    """The rows of metrics.csv; a last line that is still being written is left for later unless `whole`."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise _damaged(path, f"not valid CSV ({error})") from None
    if not rows:
        return ()
    header, *rows = rows
    if "epoch" not in header or len(set(header)) < len(header):
        raise _damaged(path, "its first line is not a header with the column 'epoch' and each name once")
    if rows and len(rows[-1]) < len(header) and not whole and not text.endswith("\n"):
        rows.pop()
    epochs: list[Epoch] = []
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise _damaged(path, f"row {number} has {len(row)} cells, the header {len(header)}")
        epochs.append(_epoch(path, number, dict(zip(header, row, strict=True))))
        if len(epochs) > 1 and epochs[-1].epoch <= epochs[-2].epoch:
            raise _damaged(path, f"row {number}: epoch {epochs[-1].epoch} follows {epochs[-2].epoch}")
    return tuple(epochs)


def _epoch(path: Path, number: int, row: Mapping[str, str]) -> Epoch:
    values: dict[str, Any] = {}
    for column in (field.name for field in fields(Epoch)):
        cell = row.get(column, "").strip()
        if not cell and column != "epoch":
            continue
        try:
            values[column] = value = int(cell) if column in _WHOLE else float(cell)
        except ValueError:
            kind = "whole number" if column in _WHOLE else "number"
            raise _damaged(path, f"row {number}: {column} is {cell[:40]!r}, not a {kind}") from None
        if column in _WHOLE and not 0 <= value <= LARGEST_COUNT:
            raise _damaged(path, f"row {number}: {column} is {cell[:40]}, not a count")
        if column.endswith("_accuracy") and not 0 <= value <= 100 and not math.isnan(value):
            raise _damaged(path, f"row {number}: {column} is {cell[:40]}, not a percentage")
    return Epoch(**values)


def _checkpoints(path: Path) -> tuple[int, ...]:
    if not path.is_dir():
        return ()
    return tuple(sorted(int(d.name) for d in path.iterdir() if d.name.isdecimal() and d.is_dir()))


def _published(experiment: Mapping[str, Any]) -> Published | None:
    about = experiment.get("about")
    try:
        return Published.model_validate(about["published"] if isinstance(about, Mapping) else None)
    except (KeyError, ValidationError):
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 15 else None
