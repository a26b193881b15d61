"""Progress of long work before training: reading images, timing steps. Whoever runs it may listen.

The work calls `report`; nothing happens unless a listener was set, so that reading takes no callback through
registered data sources.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Listener = Callable[[str, float], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def reporting_to(listener: Listener | None) -> Iterator[None]:
    """Context manager: call `listener(what, share)` for all work of this thread within the block.

    Args:
        listener: takes what is done, such as "reading cifar10", and its share in [0, 1]; at 1 it is finished.
            None: nobody listens.

    Example:
        >>> with reporting_to(lambda what, share: print(f"{what}: {share:.0%}")):
        ...     report("reading", 0.5)
        reading: 50%
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(what: str, share: float) -> None:
    """Say that a share of some work is done."""
    listener = _listener.get()
    if listener is not None:
        listener(what, share)
