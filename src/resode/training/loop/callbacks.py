"""Callbacks: what a program adds to a training: it may read along, add metrics, end the training."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from resode.errors import InputError
from resode.training.records.run import COLUMNS
from resode.training.setup.preparation import Setup


class Callback:
    """What a training calls; here every method does nothing. Subclass and override some.

    With several processes, rank 0 alone calls back. An exception ends the run; its last checkpoint stays.

    Example:
        >>> class Patience(resode.training.Callback):
        ...     def epoch_ended(self, row):
        ...         return "it is good enough" if row["validation_accuracy"] > 99 else None
    """

    def message(self, text: str) -> None:
        """Called with a line that the user should see."""

    def started(self, setup: Setup, epoch: int) -> None:
        """Called when the run starts, or resumes, at this epoch (from 0).

        `setup` has the network (`setup.module`), the resolved experiment, the data and the device.
        """

    def stepped(self, epoch: int, step: int, loss: float | None) -> None:
        """Called after each step (both from 0); `loss` is None where reading it would wait for the device."""

    def evaluating(self, done: int, samples: int) -> None:
        """Called after each batch of an evaluation: `done` of `samples` images so far."""

    def metrics(self, module: nn.Module, epoch: int) -> Mapping[str, float]:
        """Called at the end of each epoch (from 1): further columns of metrics.csv, by name.

        `module` is the network that is trained, in training mode.
        """
        return {}

    def epoch_ended(self, row: dict[str, Any]) -> str | None:
        """Called with each new row of metrics.csv; returns why the training should end here, or None.

        The run is then saved, evaluated on the test images and marked as stopped; it can be resumed.
        """

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Called when the run is finished or stopped by a callback, or was before."""


class Callbacks(Callback):
    """Calls several callbacks in turn; the first reason to end counts."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def message(self, text: str) -> None:
        for each in self.callbacks:
            each.message(text)

    def started(self, setup: Setup, epoch: int) -> None:
        for each in self.callbacks:
            each.started(setup, epoch)

    def stepped(self, epoch: int, step: int, loss: float | None) -> None:
        for each in self.callbacks:
            each.stepped(epoch, step, loss)

    def evaluating(self, done: int, samples: int) -> None:
        for each in self.callbacks:
            each.evaluating(done, samples)

    def metrics(self, module: nn.Module, epoch: int) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for each in self.callbacks:
            found |= checked_metrics(each.metrics(module, epoch))
        return found

    def epoch_ended(self, row: dict[str, Any]) -> str | None:
        reasons = [_checked_reason(each.epoch_ended(row)) for each in self.callbacks]
        return next(filter(None, reasons), None)

    def finished(self, summary: Mapping[str, Any]) -> None:
        for each in self.callbacks:
            each.finished(summary)


def _checked_reason(reason: Any) -> Any:
    """Why a callback ends the training; raises `InputError` for what may be returned by mistake."""
    if reason is None or isinstance(reason, str | bool):
        return reason
    raise InputError(
        f"epoch_ended of a callback returned a value of type {type(reason).__name__}; give None to go on, "
        "or why to end"
    )


def checked_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """The metrics of callbacks as columns of metrics.csv.

    Raises:
        InputError: a name that is taken or no word, or a value that is no number.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"metrics of a callback are a mapping of names to numbers, not {values!r}")
    columns = {}
    for name, value in values.items():
        if name in COLUMNS or not isinstance(name, str) or not re.fullmatch(r"\w[\w./ -]*", name):
            raise InputError(
                f"a callback's metric cannot be called {name!r}; give another name, of letters and digits"
            )
        try:
            columns[name] = float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"the metric '{name}' of a callback is no number: {value!r}") from None
    return columns
