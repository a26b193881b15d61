"""Accuracy by class and the confusion matrix, ready to draw."""

import math
from dataclasses import dataclass

from resode.quantities import count
from resode.training.records.reader import EvaluationRecord

WRITTEN = 25  # largest number of classes for a table of numbers
DRAWN = 200  # largest number of classes for an image


@dataclass(frozen=True)
class Row:
    """A class: accuracy in percent, most frequent wrong prediction and its count."""

    name: str
    accuracy: float
    mistaken_for: str
    times: int


@dataclass(frozen=True)
class Cell:
    """One entry of the confusion matrix; `shade` is in [0, 1]."""

    row: int
    column: int
    count: int
    shade: float
    text: str

    @property
    def kind(self) -> str:
        """CSS class: whether these images are classified correctly."""
        return "right" if self.row == self.column else "wrong"


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix: class names and cells by row (the true class)."""

    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def written(self) -> bool:
        """Whether there are few enough classes for a table of numbers."""
        return len(self.names) <= WRITTEN

    @property
    def filled(self) -> list[Cell]:
        """The cells with at least one image."""
        return [cell for row in self.rows for cell in row if cell.count]


def names(result: EvaluationRecord) -> tuple[str, ...]:
    """The class names; numbers if they are unknown."""
    if result.per_class is not None:
        return tuple(result.per_class)
    return tuple(str(k) for k in range(len(result.confusion or ())))


def rows(result: EvaluationRecord) -> tuple[Row, ...]:
    """The classes that have images, hardest first."""
    known, found = names(result), []
    for true, name in enumerate(known):
        if result.confusion is None:
            accuracy = (result.per_class or {}).get(name)
            if accuracy is not None:
                found.append(Row(name, accuracy, "", 0))
            continue
        counts = result.confusion[true]
        if sum(counts):
            times, other = max(((n, -k) for k, n in enumerate(counts) if k != true), default=(0, 0))
            accuracy = 100 * counts[true] / sum(counts)
            found.append(Row(name, accuracy, known[-other] if times else "", times))
    return tuple(sorted(found, key=lambda row: row.accuracy))


def matrix(result: EvaluationRecord) -> Matrix | None:
    """The confusion matrix, shaded by the fraction of the true class (errors: its root); None if large."""
    if not result.confusion or len(result.confusion) > DRAWN:
        return None
    known = names(result)
    return Matrix(
        known,
        tuple(
            tuple(_cell(known, true, guess, n, sum(counts)) for guess, n in enumerate(counts))
            for true, counts in enumerate(result.confusion)
        ),
    )


def _cell(known: tuple[str, ...], true: int, guess: int, n: int, total: int) -> Cell:
    share = n / total if total else 0.0
    text = f"{known[true]} classified as {known[guess]}: {count(n)} of {count(total)}"
    return Cell(true, guess, n, round(share if true == guess else math.sqrt(share), 3), text)
