"""Checkpoints: the state of a run as safetensors and JSON, written atomically.

`checkpoints/<iteration>/{model.safetensors, training.safetensors, state.json, manifest.json}`; the manifest
lists the SHA-256 of the others. A checkpoint is written to `.<iteration>.new`, fsynced and renamed; one that
it replaces is `.<iteration>.old` meanwhile. A process may be killed between any two of these steps, so a
reader takes the newest of all three kinds whose hashes are right, and `recover` gives it its name.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from resode import atomic
from resode.errors import InputError, IntegrityError, nearest

OPTIMIZER, AVERAGE, GENERATOR = "optimizer", "average", "generator"  # groups of the training tensors
FORMAT = 1  # of state.json; increase it when a reader has to know of a change
MODEL, TRAINING, STATE, MANIFEST = "model.safetensors", "training.safetensors", "state.json", "manifest.json"
FILES = (MODEL, TRAINING, STATE, MANIFEST)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose hashes have been checked."""

    path: Path
    training: Mapping[str, Tensor]
    state: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The weights file."""
        return self.path / MODEL

    @property
    def iteration(self) -> int:
        """Number of optimizer steps taken."""
        return _place(self.path)[0]

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors named `<group>/<rest>` in the training file, by the rest of their names.

        Raises:
            InputError: the file has a group of another name, as earlier versions wrote them.
        """
        groups = OPTIMIZER, AVERAGE, GENERATOR
        found = {tensor.partition("/")[0] for tensor in self.training if "/" in tensor}
        for unknown in sorted(found.difference(groups)):
            now = next((name for name in groups if nearest(unknown, [name])), "")
            raise InputError(
                f"{self.path}: holds tensors '{unknown}/...'{f', called {now!r} now' if now else ''}; resume "
                "it with the version that wrote them, or choose another --out"
            )
        prefix = f"{name}/"
        return {t.removeprefix(prefix): v for t, v in self.training.items() if t.startswith(prefix)}


def write(
    root: Path,
    iteration: int,
    save_model: Callable[[Path], None],
    training: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint atomically, then remove all but the newest `keep`.

    Args:
        root: the folder of checkpoints.
        iteration: optimizer steps taken; the name of the checkpoint's folder.
        save_model: writes the weights file.
        training: tensors beside the weights: optimizer state, averages, generator states.
        state: JSON values: position in the training and rows of metrics.csv.
        keep: how many checkpoints stay.

    Returns:
        The checkpoint's folder.

    Raises:
        ResourceError: the disk is full or read-only; earlier checkpoints are untouched.
    """
    target, fresh, old = root / str(iteration), root / f".{iteration}.new", root / f".{iteration}.old"
    with atomic.writing(target):
        root.mkdir(exist_ok=True)
        for leftover in _unnamed(root):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        try:
            _fill(fresh, save_model, training, state)
            if target.exists():
                target.rename(old)
            fresh.rename(target)
            atomic.sync(root)
        except OSError:
            if old.exists() and not target.exists():
                old.rename(target)
            raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    for surplus in stored(root)[:-keep]:
        shutil.rmtree(surplus, ignore_errors=True)
    return target


def _fill(
    folder: Path,
    save_model: Callable[[Path], None],
    training: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    save_model(folder / MODEL)
    try:
        save_file({name: t.contiguous() for name, t in training.items()}, folder / TRAINING)
    except SafetensorError as error:  # it reports a full disk in its own words
        raise OSError(str(error)) from error
    (folder / STATE).write_text(json.dumps({"format": FORMAT, **state}, indent=2) + "\n", encoding="utf-8")
    (folder / TRAINING).chmod(folder.stat().st_mode & 0o666)  # safetensors lets its owner alone read it
    files = {name: atomic.sha256(folder / name) for name in (MODEL, TRAINING, STATE)}
    (folder / MANIFEST).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
    for name in (TRAINING, STATE, MANIFEST):
        atomic.sync(folder / name)
    atomic.sync(folder)


def stored(root: Path) -> list[Path]:
    """The checkpoint folders under `root`, oldest first, damaged ones included."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and p.name.isdigit()), key=_place)


_UNNAMED = re.compile(r"\.(\d+)\.(new|old)")


def _unnamed(root: Path) -> list[Path]:
    """The folders of writes that have not ended, whole or not, oldest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and _UNNAMED.fullmatch(p.name)), key=_place)


def _place(folder: Path) -> tuple[int, int]:
    """Iteration of a checkpoint folder, and its age among those of that iteration: old, named, new."""
    unnamed = _UNNAMED.fullmatch(folder.name)
    return (int(folder.name), 1) if unnamed is None else (int(unnamed[1]), 2 * (unnamed[2] == "new"))


def _whole(folder: Path) -> bool:
    try:
        verify(folder)
    except IntegrityError:
        return False
    return True


def recover(root: Path) -> None:
    """Name the whole checkpoints of writes that were killed, and remove the rest; under the run's lock.

    Raises:
        ResourceError: the folder cannot be written.
    """
    with atomic.writing(root):
        for folder in reversed(_unnamed(root)):  # the new one of an iteration before the old one
            target = root / str(_place(folder)[0])
            if not target.exists() and _whole(folder):
                folder.rename(target)
            else:
                shutil.rmtree(folder, ignore_errors=True)


def verify(folder: Path) -> None:
    """Check the files of a checkpoint against the hashes in its manifest.

    Raises:
        IntegrityError: a file is missing or does not match its hash.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in manifest.items()}
    except (OSError, ValueError, AttributeError):
        raise IntegrityError(f"{folder}: its manifest.json is missing or damaged") from None
    for name in (MODEL, TRAINING, STATE):
        if name not in files or not (folder / name).is_file():
            raise IntegrityError(f"{folder / name}: is missing")
        if atomic.sha256(folder / name) != files[name]:
            raise IntegrityError(f"{folder / name}: does not match its hash in manifest.json (damaged)")


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint after checking its hashes.

    Raises:
        IntegrityError: a file is missing, damaged or unreadable.
        InputError: a newer version wrote it.
    """
    verify(folder)
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if (version := state.pop("format", FORMAT)) != FORMAT:
            raise InputError(f"{folder}: has format {version}, this resode reads {FORMAT}: upgrade resode")
        return Checkpoint(folder, load_file(folder / TRAINING), state)
    except InputError:  # is a ValueError, too
        raise
    except (SafetensorError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{folder}: cannot be read ({error})") from None


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest intact checkpoint under `root`; None if there is none.

    Returns:
        The checkpoint, and a message for each newer one that is damaged.

    Raises:
        IntegrityError: there are checkpoints, and all are damaged.
    """
    damaged: list[str] = []
    for folder in sorted([*stored(root), *_unnamed(root)], key=_place, reverse=True):
        try:
            return read(folder), damaged
        except IntegrityError as error:
            if folder.name.isdigit():  # else it is being written
                damaged.extend(error.messages)
    if damaged:
        raise IntegrityError(*damaged, f"{root}: all checkpoints are damaged; start again with another --out")
    return None, damaged
