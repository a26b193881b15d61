"""What a PATH stands for: a run, a checkpoint, a .safetensors file or the name of a pretrained network."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from resode import pretrained, weights
from resode.errors import InputError, nearest
from resode.training.recipe.experiment import Experiment
from resode.training.records import checkpoints
from resode.training.records.reader import read_summary
from resode.training.records.run import Run
from resode.training.records.state import unsealed_note, with_state


def weights_file(path: str | Path) -> Path:
    """Find the weights file of PATH.

    A run has its final weights, or those of its newest checkpoint while it is unfinished. A file or a run of
    that name comes before a pretrained name.

    Raises:
        InputError: there is no such run, checkpoint, file or name.
        IntegrityError: a checkpoint does not match the hashes in its manifest.
    """
    name, path = str(path), Path(path)
    if not path.exists():
        if (found := pretrained.file(name)) is not None:
            return found
        raise InputError(f"{path}: no such run, checkpoint or file{nearest(name, pretrained.names())}")
    if path.is_file():
        return path
    if _is_checkpoint(path):
        checkpoints.verify(path)
        return path / checkpoints.MODEL
    run = Run(path)
    if run.model.is_file():
        read_summary(path)  # a finished run whose files were changed is refused
        return run.model
    checkpoint, _ = checkpoints.newest(run.checkpoints)
    if checkpoint is None:
        if not run.exists and (found := pretrained.file(name)) is not None:
            return found
        raise InputError(f"{path}: holds no run (no model.safetensors, no checkpoints)")
    return checkpoint.model


def _is_checkpoint(folder: Path) -> bool:
    return (folder / checkpoints.MANIFEST).is_file()


@dataclass(frozen=True)
class Location:
    """The weights file of a PATH, and what the run around it knows.

    Args:
        weights: the file that `weights_file` finds.
        experiment: the experiment of its run; None for a file outside a run.
        optimizer: the optimizer's state, `<state>/<parameter>` -> tensor, from the checkpoint or the newest
            one of the run; empty if there is none.
    """

    weights: Path
    experiment: Experiment | None
    optimizer: Mapping[str, Tensor]


def locate(path: str | Path) -> Location:
    """Read the experiment and the optimizer's state that belong to the weights of PATH.

    Raises:
        InputError: there is no such run, checkpoint, file or name, or an earlier version wrote it.
        IntegrityError: a checkpoint does not match the hashes in its manifest.
    """
    file, path = weights_file(path), Path(path)
    if not path.is_dir():
        return Location(file, None, {})
    checkpoint: checkpoints.Checkpoint | None
    if _is_checkpoint(path):
        checkpoint, run = checkpoints.read(path), Run(path.resolve().parent.parent)
    else:
        run = Run(path)
        checkpoint, _ = checkpoints.newest(run.checkpoints)
    state = {} if checkpoint is None else checkpoint.group(checkpoints.OPTIMIZER)
    return Location(file, run.read_experiment() if run.exists else None, state)


def read_network(file: Path) -> weights.Loaded:
    """Rebuild the network of a weights file; its card has the state of the run around it (`state`).

    Raises:
        InputError: as `weights.load`.
        IntegrityError: a file is corrupt.
    """
    module = weights.load(file)
    return weights.with_card(module, with_state(file, module.card))


def load(path: str | Path, *, into: nn.Module | None = None) -> weights.Loaded:
    """Load the network of PATH with its preprocessing, in evaluation mode.

        model = resode.load("runs/he2016-resnet20-seed0")
        logits = model(model.preprocessing(images))
        net = resode.load("runs/mynet-seed0", into=MyNet())  # of a network of one's own

    Args:
        path: a run directory, a checkpoint, a .safetensors file, or a pretrained name that
            `resode list models` shows, such as "short/resnet20".
        into: a network that takes the weights, on its own device and in its own dtype; needed where PATH has
            a network that was made in Python. It is returned.

    Raises:
        InputError: there is no such run, checkpoint, file or name; its network cannot be built, or `into` is
            another network.
        IntegrityError: a file is corrupt.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"a run, a checkpoint or a file has a path, not the type {type(path).__name__}")
    file = weights_file(path)
    if into is None:
        loaded = read_network(file)
    elif isinstance(into, nn.Module):
        weights.load_into(into, file)
        loaded = weights.with_card(into.eval(), with_state(file, weights.read_card(file)))
    else:
        raise InputError(f"into cannot be of type {type(into).__name__}; give a network (nn.Module)")
    if line := unsealed_note(path, file, loaded.card):
        warnings.warn(line, stacklevel=2)
    return loaded
