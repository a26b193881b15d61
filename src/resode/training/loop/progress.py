"""Progress: where a run stands, what it tells on the way, and how long its parts take."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from resode.training.setup.preparation import Setup


class Observer:
    """What a run tells while it goes on; this one keeps silent."""

    def message(self, text: str) -> None:
        """Something that the user should know, in one line."""

    def started(self, setup: Setup, epoch: int) -> None:
        """The run begins, or goes on, with this epoch (from 0)."""

    def stepped(self, epoch: int, step: int, loss: float | None) -> None:
        """A step is done; the loss is known only where reading it costs nothing."""

    def evaluating(self, done: int, samples: int) -> None:
        """`done` of `samples` images are evaluated."""

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """A row of metrics.csv is complete."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run came to its end, now or before."""


class Observers(Observer):
    """Tells several."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def message(self, text: str) -> None:
        for each in self.observers:
            each.message(text)

    def started(self, setup: Setup, epoch: int) -> None:
        for each in self.observers:
            each.started(setup, epoch)

    def stepped(self, epoch: int, step: int, loss: float | None) -> None:
        for each in self.observers:
            each.stepped(epoch, step, loss)

    def evaluating(self, done: int, samples: int) -> None:
        for each in self.observers:
            each.evaluating(done, samples)

    def epoch_ended(self, row: dict[str, Any]) -> None:
        for each in self.observers:
            each.epoch_ended(row)

    def finished(self, summary: Mapping[str, Any]) -> None:
        for each in self.observers:
            each.finished(summary)


class Stopwatch:
    """Seconds since it began, less its pauses, on top of those of an earlier part."""

    def __init__(self, earlier: float) -> None:
        self.began = time.monotonic() - earlier

    @property
    def seconds(self) -> float:
        """What it shows."""
        return time.monotonic() - self.began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still within the block."""
        begin = time.monotonic()
        yield
        self.began += time.monotonic() - begin


@dataclass
class Position:
    """Where a run stands: `step` of `epoch` is the next to do."""

    epoch: int = 0
    step: int = 0
    iteration: int = 0
    epoch_seconds: float = 0.0  # training steps of this epoch
    wall_seconds: float = 0.0  # everything so far
    resumes: int = 0
    level: int = 0  # changes of the network so far
    function_evaluations: int = 0  # of the blocks' fields, in this epoch
    fallen_back: bool = False  # from reversible gradients, whose states had drifted
