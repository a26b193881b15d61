"""Listing: tables of names as plain text, which fit the width of a terminal without losing a column.

Loads neither PyTorch nor rich.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

GAP, INDENT = "  ", 4
LEAST = 30  # characters of a text that wraps beside the names; a narrower one goes below


def width() -> int | None:
    """Characters of a line: those of the terminal, or COLUMNS; None for a file or a pipe."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return None
    return max(shutil.get_terminal_size().columns, 40)


def say(text: str) -> None:
    """Print a result.

    Raises:
        BrokenPipeError: the reader has closed the pipe; without its number, by which typer would exit with 1.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise BrokenPipeError from None


def listing(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    texts: int = 1,
    one_line: bool = False,
    width: int | None = None,
) -> str:
    """A table as lines of text.

    Args:
        heads: the name of each column.
        rows: a cell for each column.
        right: heads of the columns of numbers, which are aligned to the right.
        texts: how many columns at the end hold texts; where a line is too narrow they go below the names.
        one_line: cut the last text where it exceeds the line instead.
        width: characters of a line (default: no limit).
    """
    sizes = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    total = sum(sizes) + len(GAP) * (len(sizes) - 1)
    fits = width is None or total <= width
    inline = len(heads) if fits or one_line else len(heads) - texts
    beside = sum(sizes[:inline]) + len(GAP) * inline  # where a text begins that wraps beside the names
    indent = beside if texts == 1 and (width or 0) - beside >= LEAST else INDENT

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(size) if head in right else cell.ljust(size)
            for cell, size, head in zip(cells[:inline], sizes, heads, strict=False)
        ]
        text = GAP.join(aligned).rstrip()
        return text if fits or width is None or len(text) <= width else f"{text[: width - 1]}…"

    def block(cells: Sequence[str]) -> list[str]:
        """The lines of a row: its names and numbers, and texts beside or below."""
        first = line(cells)
        below = [
            " " * indent + part
            for text in filter(None, cells[inline:])
            for part in textwrap.wrap(text, (width or 0) - indent, break_long_words=False)
        ]
        if below and indent > INDENT:
            return [first.ljust(indent) + below[0][indent:], *below[1:]]
        return [first, *below]

    rule = "-" * min(total, width or total)
    return "\n".join([*block(heads), rule, *(part for row in rows for part in block(row))])
