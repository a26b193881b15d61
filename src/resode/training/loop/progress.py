"""Progress: callbacks of a run."""

from collections.abc import Mapping
from typing import Any

from resode.training.setup.preparation import Setup


class Observer:
    """Callbacks of a run; here they do nothing. Subclass and override some."""

    def message(self, text: str) -> None:
        """Called with a line that the user should see."""

    def started(self, setup: Setup, epoch: int) -> None:
        """Called when the run starts, or resumes, at this epoch (from 0)."""

    def stepped(self, epoch: int, step: int, loss: float | None) -> None:
        """Called after each step; `loss` is None where reading it would wait for the device."""

    def evaluating(self, done: int, samples: int) -> None:
        """Called after each batch of an evaluation: `done` of `samples` images so far."""

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Called with each new row of metrics.csv."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Called when the run is finished, or was before."""


class Observers(Observer):
    """Calls several observers in turn."""

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
