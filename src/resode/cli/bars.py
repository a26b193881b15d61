"""Bars: what the library reports of its progress, on stderr."""

import contextlib
from collections.abc import Callable


class Bars:
    """Shows what `resode.progress` reports, as `console.waiting` does, one piece of work at a time."""

    def __init__(self) -> None:
        self.what: str | None = None
        self.show: Callable[[float], None] = lambda share: None
        self.shown = contextlib.ExitStack()

    def __call__(self, what: str, share: float) -> None:
        """Show that a share of some work is done; at 1 it is no longer shown."""
        if what != self.what and share < 1:
            self.close()
            self._open(what)
        if what == self.what:
            self.show(share)
        if share >= 1:
            self.close()

    def _open(self, what: str) -> None:
        from rich.errors import LiveError

        from resode.cli.console import waiting

        self.what = what
        try:
            self.show = self.shown.enter_context(waiting(what))
        except LiveError:  # the command shows a bar of its own
            self.show = lambda share: None

    def close(self) -> None:
        """Remove the bar."""
        self.what = None
        self.shown.close()
