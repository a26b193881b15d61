"""State: how far the training of some weights came, as their card and the run around their file say.

`resode.load` and all that reads a run or a checkpoint add what the run knows to the training record of the
card, as `state` and `iteration`; so an exported file says it, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resode import weights
from resode.training.records import checkpoints, reader, seal
from resode.training.records.run import Run

FINISHED, UNFINISHED = "finished", "unfinished"
_WORDS = {
    UNFINISHED: "weights of an unfinished run",
    "stopped": "weights of a run that was stopped",
    "diverged": "weights of a run that diverged, the last finite ones",
}


@dataclass(frozen=True)
class State:
    """How far the training of some weights came.

    Args:
        name: "finished", "unfinished", "stopped" (by a signal or a callback) or "diverged"; None: not known,
            as of weights that were imported.
        iteration: optimizer steps taken; None: not known.
        planned: optimizer steps of the whole training; None: not known.
    """

    name: str | None = None
    iteration: int | None = None
    planned: int | None = None

    def record(self) -> dict[str, Any]:
        """The state as JSON."""
        return {"state": self.name, "iteration": self.iteration}

    def note(self, label: str | Path) -> str:
        """A line about weights that are not those of a finished training; empty for all others.

        Args:
            label: of the weights.
        """
        if self.name not in _WORDS:
            return ""
        of = f" of {self.planned:,}" if self.planned is not None else ""
        where = f": iteration {self.iteration:,}{of}" if self.iteration is not None else ""
        return f"{label}: {_WORDS[self.name]}{where}"


UNKNOWN = State()


def state_of(card: weights.Card | None) -> State:
    """The state that a card records."""
    training: Mapping[str, Any] = {} if card is None else card.training
    iteration, _, planned = str(training.get("iterations", "")).partition(" of ")  # of a checkpoint
    name = UNFINISHED if iteration else FINISHED if "epochs" in training else None
    taken = training.get("iteration", iteration)
    return State(training.get("state", name), _whole(taken), _whole(planned))


def with_state(file: Path, card: weights.Card) -> weights.Card:
    """The card of a weights file with what the run around the file says of its state.

    Raises:
        IntegrityError: the record of the run is damaged.
    """
    found = _of_run(file.resolve(), state_of(card))
    return card if found is None else replace(card, training={**card.training, **found.record()})


def unsealed_note(label: str | Path, file: Path, card: weights.Card) -> str:
    """A line about weights whose file, or whose finished run, carries no hashes; empty for all others."""
    run = run_around(file)
    summary = None if run is None or _is_checkpoint(file.resolve()) else reader.read_summary(run.path)
    if card.sealed and (summary is None or seal.is_sealed(summary)):
        return ""
    return f"{label}: {reader.UNSEALED}"


def run_around(file: Path) -> Run | None:
    """The run whose final weights, or those of one of its checkpoints, a weights file holds; None: no run."""
    file = file.resolve()
    run = Run(file.parent.parent.parent if _is_checkpoint(file) else file.parent)
    return run if run.exists and file.name == run.model.name else None


def _is_checkpoint(file: Path) -> bool:
    return (file.parent / checkpoints.MANIFEST).is_file()


def _of_run(file: Path, own: State) -> State | None:
    """The state of a run's or a checkpoint's weights; None for a file outside of a run."""
    run = run_around(file)
    if run is None:
        return None
    summary, end = reader.read_summary(run.path), reader.read_end(run.path)
    unfinished = UNFINISHED if end is None else end.status
    if not _is_checkpoint(file):
        if summary is None:
            return State(unfinished, own.iteration)
        return State(str(summary.get("status", FINISHED)), _whole(summary.get("iterations")))
    iteration = _whole(file.parent.name) or own.iteration
    if summary is None:
        return State(unfinished, iteration, own.planned)
    last = _whole(summary.get("iterations"))
    whole = iteration is not None and iteration == last
    return State(str(summary.get("status", FINISHED)) if whole else UNFINISHED, iteration, own.planned)


def _whole(value: Any) -> int | None:
    return int(value) if str(value).isdecimal() else None
