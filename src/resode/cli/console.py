"""Console: results on stdout; notes and progress on stderr, as a bar on a terminal and as lines elsewhere."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from resode.quantities import roughly
from resode.streams import ErrorConsole


class Screen(Console):
    """A console that raises when its pipe is closed, so that `resode.cli.main` decides the exit code."""

    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`; rich itself would exit with 1."""
        raise BrokenPipeError


out, err = Screen(), ErrorConsole()
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
