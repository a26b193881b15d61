"""Restarts: `torchrun --max-restarts` replaces a process that died, but not a run that ended on purpose."""

import contextlib
from collections.abc import Iterator

from resode import atomic
from resode.errors import InputError, ResodeError, ResourceError
from resode.training.process.distributed import World
from resode.training.records.run import Run

MARK = ".restarts"  # in the run directory while torchrun may restart its processes


def allow_restarts(run: Run, world: World) -> None:
    """From now on a process that dies is replaced."""
    if world.first and world.size > 1:
        atomic.write_text(run.path / MARK, "")


@contextlib.contextmanager
def ending_on_purpose(run: Run, world: World) -> Iterator[None]:
    """Allow no restart once the block ends by itself: finished, stopped, diverged, or by a user's mistake."""
    try:
        yield
    except ResourceError:  # another process died, say
        raise
    except ResodeError:
        _forbid_restarts(run, world)
        raise
    else:
        _forbid_restarts(run, world)


def check_restart(run: Run, world: World) -> None:
    """Raise `InputError` where this process was restarted for a run that ended on purpose."""
    if not world.broadcast((run.path / MARK).is_file()):
        raise InputError(f"{run.path}: ended on purpose, or never began; it is not started again")


def _forbid_restarts(run: Run, world: World) -> None:
    if world.first:
        with contextlib.suppress(OSError):
            (run.path / MARK).unlink()
