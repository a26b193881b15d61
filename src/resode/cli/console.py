"""Console: results on stdout; notes and progress on stderr, as a bar on a terminal and as lines elsewhere."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from resode.quantities import roughly


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
        made.add_column(head, justify="left" if number < words else "right", no_wrap=number >= words)
    return made


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
        if now > due and share < 1:
            due = now + 60
            note(f"{what}: {share:.0%} done, about {roughly((now - begin) * (1 / share - 1))} to go")

    yield show
