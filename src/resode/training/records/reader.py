"""Reading of run directories, finished or not: settings, environment, epochs, result.

Reads experiment.yaml, environment.json, metrics.csv, summary.json, ended.json and the names of checkpoints.
Each file may be missing (an unfinished run has no summary); a damaged one raises an error that names it and
the mistake. What a recipe publishes and expects is given only where the run keeps to the recipe.
"""

import csv
import functools
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from resode import cost, weights
from resode.errors import InputError, IntegrityError
from resode.training.records import checkpoints, seal
from resode.training.records.departures import departures, not_its_own

T = TypeVar("T")
Count = Annotated[int, Field(ge=0, le=10**15)]
Percent = Annotated[float, Field(ge=0, le=100)]

NOT_RUN = "not run in full here yet"  # of a recipe's expected result
UNSEALED = "written by an earlier version without hashes, so damage to it cannot be found"
FROM_WEIGHTS = "weights file"  # the status of a record that was read from a weights file
MARKS = ("experiment.yaml", "metrics.csv", "summary.json")  # a run directory holds at least one of these
ROUNDING = 1e-3  # percent; records are rounded
LARGEST = 64 * 2**20  # bytes of a text file that is read


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


# ---------------------------------------------------------------- summary.json


class TrainingScores(_Record):
    """Mean loss and accuracy (percent) over the training images in the last epoch."""

    loss: float | None = None
    accuracy: Percent | None = None

    @property
    def top1_error(self) -> float | None:
        """100 - accuracy, in percent."""
        return None if self.accuracy is None else 100 - self.accuracy


class EvaluationRecord(_Record):
    """The scores of an evaluation: errors in percent over `samples` images, `confusion[true][predicted]`."""

    top1_error: Percent
    top1_accuracy: Percent | None = None
    loss: float | None = None
    samples: Count | None = None
    precision: str | None = None
    per_class: dict[str, Percent | None] | None = None
    confusion: tuple[tuple[Count, ...], ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top1_accuracy is not None and abs(self.top1_error + self.top1_accuracy - 100) > ROUNDING:
            raise ValueError("top1_error and top1_accuracy do not add up to 100")
        if self.confusion is None:
            return self
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("the confusion matrix is not square")
        if self.per_class is not None and len(self.per_class) != len(self.confusion):
            raise ValueError("per_class and confusion differ in their number of classes")
        images = sum(map(sum, self.confusion))
        right = sum(row[true] for true, row in enumerate(self.confusion))
        if images and abs(100 * (1 - right / images) - self.top1_error) > ROUNDING:
            raise ValueError("top1_error contradicts the confusion matrix")
        if self.samples not in (None, images):
            raise ValueError(f"samples is {self.samples}, the confusion matrix counts {images}")
        accuracies = (self.per_class or {}).values()
        for true, (row, given) in enumerate(zip(self.confusion, accuracies, strict=False)):
            if given is not None and any(row) and abs(100 * row[true] / sum(row) - given) > 0.5:
                raise ValueError(f"per_class contradicts row {true} of the confusion matrix")
        return self


class DataRecord(_Record):
    """The images of a run: source, content hash, number in each split, skipped files."""

    name: str | None = None
    fingerprint: str | None = None
    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    skipped: tuple[str, ...] | Count = ()


class End(_Record):
    """How a run ended that is not finished (ended.json): `stopped` or `diverged`, and a line about it."""

    status: Literal["stopped", "diverged"]
    reason: str = ""


class PublishedError(_Record):
    """The top-1 test error (percent) that the recipe reproduces, its source, and how that measured it."""

    top1_error: Percent
    source: str = ""
    measured: str = ""


class Stop(_Record):
    """Where a callback ended a run, and why."""

    epoch: Count
    reason: str = ""


class Summary(_Record):
    """The result of a run (summary.json)."""

    status: str = "finished"
    stopped: Stop | None = None
    name: str | None = None
    model: str | None = None
    parameters: Count | None = None
    seed: int | None = None
    epochs: Count | None = None
    iterations: Count | None = None
    train: TrainingScores | None = None
    validation: EvaluationRecord | None = None
    test: EvaluationRecord | None = None
    seconds: NonNegativeFloat | None = None
    training_seconds: NonNegativeFloat | None = None
    images_per_second: NonNegativeFloat | None = None
    peak_memory_bytes: Count | None = None
    data: DataRecord = DataRecord()
    published: PublishedError | None = None
    expected: str | None = None
    precision: str | None = None
    compile: bool | None = None
    resumes: Count | None = None


# ---------------------------------------------------------------- metrics.csv


def _percentage(value: float) -> float:
    if not 0 <= value <= 100 and not math.isnan(value):
        raise ValueError("not a percentage")
    return value


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


Accuracy = Annotated[float, AfterValidator(_percentage)]  # a diverged epoch has the accuracy NaN


class EpochRow(_Record):
    """A row of metrics.csv; None where nothing was measured. Accuracies in percent."""

    epoch: Count
    iterations: Count | None = None
    learning_rate: float | None = None
    train_loss: float | None = None
    train_accuracy: Accuracy | None = None
    validation_loss: float | None = None
    validation_accuracy: Accuracy | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: Count | None = None
    function_evaluations: float | None = None
    reconstruction_error: float | None = None
    further: dict[str, float] = {}  # columns of callbacks

    @model_validator(mode="before")
    @classmethod
    def _further_columns(cls, row: Any) -> Any:
        """Gather the other columns that hold a number."""
        if not isinstance(row, Mapping):
            return row
        others = {name: _number(cell) for name, cell in row.items() if name not in cls.model_fields}
        return {**row, "further": {name: value for name, value in others.items() if value is not None}}

    @property
    def train_error(self) -> float | None:
        """100 - train_accuracy, in percent."""
        return None if self.train_accuracy is None else 100 - self.train_accuracy

    @property
    def validation_error(self) -> float | None:
        """100 - validation_accuracy, in percent."""
        return None if self.validation_accuracy is None else 100 - self.validation_accuracy


_ROWS = TypeAdapter(tuple[EpochRow, ...])
_MISTAKES = {  # pydantic's type of error -> what the cell is not
    "missing": "whole number",
    "int_parsing": "whole number",
    "int_parsing_size": "whole number",
    "float_parsing": "number",
    "value_error": "percentage",
}


# ---------------------------------------------------------------- the run


@dataclass(frozen=True)
class RunRecord:
    """The content of a run directory; `summary` is None until the run has finished.

    `sealed` is False for a finished run of an earlier version, whose files carry no hashes.
    """

    path: Path
    experiment: Mapping[str, Any]
    experiment_text: str
    environment: Mapping[str, Any]
    epochs: tuple[EpochRow, ...]
    summary: Summary | None
    checkpoints: tuple[int, ...]
    weights: bool
    end: End | None = None
    sealed: bool = True

    @functools.cached_property
    def departures(self) -> tuple[str, ...]:
        """The settings in which the run departs from the recipe of its name, as dotted keys."""
        return departures(self.experiment)

    @functools.cached_property
    def not_its_own(self) -> tuple[str, ...]:
        """The parts of the experiment's header that are of a recipe from which the run departs."""
        return not_its_own(self.experiment)

    @property
    def initial_weights(self) -> str | None:
        """Where training began: "random", or the weights file; None where it is not recorded."""
        if not self.experiment:
            return None
        return self.setting("init", "path") or "random"

    @property
    def title(self) -> str:
        """`MODEL on DATA`."""
        return " on ".join(
            filter(None, (self.result.model or self.path.resolve().name, self.result.data.name))
        )

    @property
    def finished(self) -> bool:
        """Whether the run has trained for all of its epochs."""
        return self.summary is not None and self.summary.status in ("finished", FROM_WEIGHTS)

    @functools.cached_property
    def result(self) -> Summary:
        """The summary; for an unfinished run, the settings that are known in advance.

        Without published and expected results where the run departs from its recipe, or has ended before the
        last epoch.
        """
        found = self.summary or self._known()
        diverged = self.end is not None and self.end.status == "diverged"
        early = diverged or (self.summary is not None and not self.finished)
        dropped = {key: None for key in ("published", "expected") if early or key in self.not_its_own}
        found = found.model_copy(update=dropped)
        if self.finished and found.expected is not None:  # this run shows it
            clauses = [text for text in found.expected.split("; ") if text != NOT_RUN]
            return found.model_copy(update={"expected": "; ".join(clauses) or None})
        return found

    def _known(self) -> Summary:
        """What is known of an unfinished run."""
        return Summary(
            status=self.end.status if self.end is not None else "unfinished",
            name=self.setting("name"),
            model=self.setting("model", "name") or self.setting("model"),
            seed=_whole(self.setting("seed")),
            epochs=_whole(self.setting("epochs")),
            data=DataRecord(name=self.setting("data", "source") or self.setting("data")),
            published=_published(self.experiment),
            expected=self.setting("about", "expected"),
            precision=self.setting("precision"),
        )

    @property
    def epoch(self) -> int:
        """The last completed epoch, counted from 1 (0: none yet)."""
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def validated(self) -> EpochRow | None:
        """The last epoch with an evaluation on the validation images."""
        return next((e for e in reversed(self.epochs) if e.validation_accuracy is not None), None)

    def setting(self, *path: str) -> str | None:
        """A setting of the experiment as text, by its path; None if it is not set."""
        value: Any = self.experiment
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return str(value) if isinstance(value, str | int | float) and value != "" else None


def read(path: Path) -> RunRecord:
    """Read a run directory, finished or not, or the card of a .safetensors file.

    Raises:
        InputError: the path is not a run directory.
        IntegrityError: a file in it is damaged; one line names the file and the first mistake.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".safetensors":
        return _read_weights(path)
    _require_run(path)
    text = _text(path / "experiment.yaml")
    summary = _json(path / "summary.json", Summary.model_validate)
    values = _json(path / "summary.json", dict)
    return RunRecord(
        path=path,
        experiment=_yaml(path / "experiment.yaml", text),
        experiment_text=text or "",
        environment=_json(path / "environment.json", dict) or {},
        epochs=_epochs(path / "metrics.csv", finished=summary is not None),
        summary=summary,
        checkpoints=tuple(int(folder.name) for folder in checkpoints.stored(path / "checkpoints")),
        weights=(path / "model.safetensors").is_file(),
        end=read_end(path) if summary is None else None,
        sealed=values is None or seal.check(path, values),
    )


def unsealed_note(runs: Iterable[RunRecord]) -> str:
    """A line about the runs among these that carry no hashes; empty if all do."""
    found = [str(run.path) for run in runs if not run.sealed]
    listed = f"{', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
    return f"{listed}: {UNSEALED}" if found else ""


def read_summary(path: Path, *, check: bool = True) -> dict[str, Any] | None:
    """The values of a run's summary.json as they were written; None if the run has not finished.

    Args:
        path: the run directory.
        check: compare the files of the run with the hashes in its summary.

    Raises:
        IntegrityError: the file is damaged, or another file of the run was changed.
    """
    values = _json(path / "summary.json", dict)
    if values is not None:
        _json(path / "summary.json", Summary.model_validate)
        if check:
            seal.check(path, values)
    return values


def read_end(path: Path) -> End | None:
    """Why a run stopped or diverged (ended.json); None for a finished run, or one that was killed.

    Raises:
        IntegrityError: the file is damaged.
    """
    return _json(path / "ended.json", End.model_validate)


def _read_weights(path: Path) -> RunRecord:
    """The record in the card of a weights file."""
    card = weights.read_card(path)
    training, specification = card.training, card.specification
    parameters = None
    if specification is not None:
        with torch.device("meta"):
            parameters = cost.parameters(specification.build())
    error, samples = training.get("test_error"), training.get("test_samples")
    try:
        summary = Summary(
            status=FROM_WEIGHTS,
            name=training.get("recipe"),
            model=specification.name if specification else path.name,
            parameters=parameters,
            seed=training.get("seed"),
            epochs=training.get("epochs"),
            test=None if error is None else EvaluationRecord(top1_error=error, samples=samples),
            data=DataRecord(name=training.get("data"), test=samples),
        )
    except ValidationError as mistake:
        raise _damaged(path, f"its card: {mistake.errors(include_url=False)[0]['msg']}") from None
    text = yaml.safe_dump(json.loads(card.to_json()), sort_keys=False, allow_unicode=True)
    return RunRecord(path, {}, text, {}, (), summary, (), weights=True, sealed=card.sealed)


def _require_run(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: no such directory; name one that `resode train` wrote")
    if not path.is_dir():
        raise InputError(f"{path}: a file, not a run directory; name the directory that `resode train` wrote")
    if not any((path / mark).is_file() for mark in MARKS):
        inside = sorted({str(found.parent) for mark in MARKS for found in path.glob(f"*/{mark}")})
        fix = f"it holds {', '.join(inside[:5])}" if inside else "name one that `resode train` wrote"
        raise InputError(f"{path}: no run directory (none of {', '.join(MARKS)} is in it); {fix}")


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


def _json(path: Path, validate: Callable[[Any], T]) -> T | None:
    """The validated JSON object in a file; None if the file is missing."""
    text = _text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise _damaged(path, "not a JSON object")
        return validate(value)
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


def _epochs(path: Path, *, finished: bool) -> tuple[EpochRow, ...]:
    """The rows of metrics.csv; of an unfinished run without the last line while it is being written."""
    header, cells = _cells(path, finished=finished)
    rows = [{key: cell for key, cell in zip(header, row, strict=True) if cell.strip()} for row in cells]
    try:
        epochs = _ROWS.validate_python(rows)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        number, column = int(first["loc"][0]), str(first["loc"][1])
        cell, kind = rows[number].get(column, "")[:40], _MISTAKES.get(first["type"], "count")
        raise _damaged(path, f"row {number + 2}: {column} is {cell!r}, not a {kind}") from None
    for number, (one, following) in enumerate(itertools.pairwise(epochs), start=3):
        if following.epoch <= one.epoch:
            raise _damaged(path, f"row {number}: epoch {following.epoch} follows {one.epoch}")
    return epochs


def _cells(path: Path, *, finished: bool) -> tuple[list[str], list[list[str]]]:
    """The header of a CSV file and its rows, all of the same length."""
    text = _text(path) or ""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise _damaged(path, f"not valid CSV ({error})") from None
    if not rows:
        return [], []
    header, *rows = rows
    if "epoch" not in header or len(set(header)) < len(header):
        raise _damaged(path, "its first line is not a header with the column 'epoch' and each name once")
    if rows and len(rows[-1]) < len(header) and not finished and not text.endswith("\n"):
        rows.pop()
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise _damaged(path, f"row {number} has {len(row)} cells, the header {len(header)}")
    return header, rows


def _published(experiment: Mapping[str, Any]) -> PublishedError | None:
    about = experiment.get("about")
    try:
        return PublishedError.model_validate(about["published"] if isinstance(about, Mapping) else None)
    except (KeyError, ValidationError):
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 15 else None
