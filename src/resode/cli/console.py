"""Console: results on stdout; notes and progress on stderr, as a bar on a terminal and as lines elsewhere."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from resode.quantities import roughly
from resode.training.loop.progress import Observer
from resode.training.setup.preparation import Setup


class Screen(Console):
    """A console that raises when its pipe is closed, so that `resode.cli.main` decides the exit code."""

    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`; rich itself would exit with 1."""
        raise BrokenPipeError


out, err = Screen(), Screen(stderr=True)
if not out.is_terminal and "COLUMNS" not in os.environ:
    out = Screen(width=120)  # a file or a pipe has no width to fit


def say(text: str) -> None:
    """Print a line of a result on stdout: no markup, no highlighting, no wrapping."""
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a line on stderr: no markup, no highlighting, no wrapping."""
    err.print(text, highlight=False, markup=False, soft_wrap=True)


def table(*heads: str, words: int = 1, title: str = "") -> Table:
    """An empty table: the first `words` columns hold text, the others numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    for number, head in enumerate(heads):
        made.add_column(
            head, justify="left" if number < words else "right", no_wrap=number >= words, overflow="fold"
        )
    return made


def fitted(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1, title: str = "", width: int
) -> list[Table]:
    """A table, or several that repeat the first `words` columns where one would be too wide.

    Nothing is cut: a text of one of those columns folds, the numbers of the others stay whole.

    Args:
        heads: of the columns; line breaks are kept.
        rows: the cells of each row, as plain text.
        words: columns of text, the others hold numbers.
        title: of the first table.
        width: characters of a line.
    """
    listed = [list(row) for row in rows]

    def made(places: list[int], title: str = "") -> Table:
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
        for place in (*range(words), *places):
            text = place < words
            longest = max((cell_len(line) for row in listed for line in row[place].split("\n")), default=0)
            shown.add_column(
                heads[place],
                justify="left" if text else "right",
                overflow="fold",
                no_wrap=not text,
                max_width=min(longest, max(16, width // 4)) if text else None,
            )
        for row in listed:
            shown.add_row(*(Text(row[place]) for place in (*range(words), *places)))
        return shown

    wide = out.options.update(width=10**6)
    whole = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    for place, head in enumerate(heads):
        whole.add_column(head, justify="left" if place < words else "right")
    for row in listed:
        whole.add_row(*map(Text, row))
    if out.measure(whole, options=wide).maximum <= width:
        return [whole]
    groups: list[list[int]] = [[]]
    for place in range(words, len(heads)):
        if groups[-1] and out.measure(made([*groups[-1], place]), options=wide).maximum > width:
            groups.append([])
        groups[-1].append(place)
    return [made(places, title if not number else "") for number, places in enumerate(groups)]


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Callable[[float], None]]:
    """Show the progress of a long measurement: a bar, or a line after 5 seconds and then once a minute.

    Yields:
        A function to call with the share of the work that is done, from 0 to 1.
    """
    if err.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task(what, total=1.0)
            yield lambda share: bar.update(task, completed=share)
        return
    begin = time.monotonic()
    due = begin + 5

    def show(share: float) -> None:
        nonlocal due
        now = time.monotonic()
        if now > due and 0 < share < 1:
            due = now + 60
            note(f"{what}: {share:.0%} done, about {roughly((now - begin) * (1 / share - 1))} to go")

    yield show


_HEADER = "epoch     lr        train loss   train acc   val loss   val acc   images/s"


class Narrator(Observer):
    """Shows the progress of a training on stderr."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.loss: float | None = None
        self.shown = 0.0

    def message(self, text: str) -> None:
        """Print a line."""
        note(text)

    def started(self, setup: Setup, epoch: int) -> None:
        """Print network and data, then the head of the epoch table."""
        experiment = setup.experiment
        name = experiment.model.name if experiment.model else type(setup.module).__name__
        held_out = f", {setup.validation.samples:,} held out" if setup.validation else ""
        self.message(
            f"{name} ({setup.parameters:,} parameters) on {experiment.data.source}: "
            f"{setup.training.samples:,} training images{held_out}; "
            f"{experiment.epochs} epochs of {setup.training.steps} steps, "
            f"batch {experiment.batch_size}, {experiment.precision}, {setup.device}"
        )
        self.epochs, self.steps, self.total = experiment.epochs, setup.training.steps, setup.training.samples
        self.message(_HEADER)
        if err.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=err,
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
        """Print a row of the epoch table."""
        held_out = row["validation_accuracy"] is not None
        loss = f"{row['validation_loss']:8.4f}" if held_out else "       -"
        accuracy = f"{row['validation_accuracy']:6.2f} %" if held_out else "       -"
        self.message(
            f"{row['epoch']:5d}   {row['learning_rate']:<10.3g}{row['train_loss']:10.4f}   "
            f"{row['train_accuracy']:7.2f} %   {loss}  {accuracy}   {row['images_per_second']:8,.0f}"
        )
        if self.progress is not None and self.task is not None:
            self.progress.reset(self.task, total=self.steps, description=self._title(row["epoch"]), note="")

    def close(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
