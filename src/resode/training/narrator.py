"""Narrator: the progress of a training and its table of epochs, on a terminal, in a notebook, or as lines."""

import importlib.util
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from resode.streams import ErrorConsole
from resode.training.loop.callbacks import Callback
from resode.training.recipe.experiment import CROSS_ENTROPY
from resode.training.records.run import COLUMNS
from resode.training.setup.preparation import Setup

_HEADER = "epoch     lr        train loss   train acc   val loss   val acc   images/s"


class Narrator(Callback):
    """Shows the progress of a training.

    On a terminal, and in a notebook that has ipywidgets, a bar follows the steps; a line an epoch is printed
    everywhere.

    Args:
        console: where; default: the notebook's cell, or stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = ErrorConsole() if console is None else console
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.loss: float | None = None
        self.shown = 0.0

    def message(self, text: str) -> None:
        """Print a line: no markup, no highlighting, no wrapping."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, setup: Setup, epoch: int) -> None:
        """Print network and data, then the head of the epoch table."""
        experiment = setup.experiment
        name = experiment.model.name if experiment.model else type(setup.module).__name__
        held_out = f", {setup.validation.samples:,} held out" if setup.validation else ""
        loss = "" if experiment.loss == CROSS_ENTROPY else f"; loss {experiment.loss}"
        self.message(
            f"{name} ({setup.parameters:,} parameters) on {experiment.data.source}: "
            f"{setup.training.samples:,} training images{held_out}; "
            f"{experiment.epochs} epochs of {setup.training.steps} steps, "
            f"batch {experiment.batch_size}, {experiment.precision}, {setup.device}{loss}"
        )
        self.epochs, self.steps = experiment.epochs, setup.training.steps
        self.message(_HEADER)
        if shows_bars(self.console):
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.task = self.progress.add_task(self._title(epoch), total=self.steps, note="")
            self.progress.start()

    def _title(self, epoch: int) -> str:
        return f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}"

    def stepped(self, epoch: int, step: int, loss: float | None) -> None:
        """Update the bar, a few times a second."""
        if self.progress is None or self.task is None:
            return
        if loss is not None:
            self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        now = time.monotonic()
        if now - self.shown > 0.1 or step + 1 == self.steps:
            self.shown = now
            note = "" if self.loss is None else f"loss {self.loss:.3f}"
            title = self._title(epoch)
            self.progress.update(
                self.task, completed=step + 1, total=self.steps, description=title, note=note
            )

    def evaluating(self, done: int, samples: int) -> None:
        """Update the bar during an evaluation."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, total=samples, note="evaluated")

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Print a row of the epoch table, metrics of callbacks at its end."""
        held_out = row["validation_accuracy"] is not None
        loss = f"{row['validation_loss']:8.4f}" if held_out else "       -"
        accuracy = f"{row['validation_accuracy']:6.2f} %" if held_out else "       -"
        further = "".join(f"   {name} {value:.4g}" for name, value in row.items() if name not in COLUMNS)
        self.message(
            f"{row['epoch']:5d}   {row['learning_rate']:<10.3g}{row['train_loss']:10.4f}   "
            f"{row['train_accuracy']:7.2f} %   {loss}  {accuracy}   {row['images_per_second']:8,.0f}{further}"
        )
        if self.progress is not None and self.task is not None:
            self.progress.reset(self.task, total=self.steps, description=self._title(row["epoch"]), note="")

    def close(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def shows_bars(console: Console) -> bool:
    """Whether a console can redraw a line: a terminal, or a notebook that has ipywidgets."""
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
