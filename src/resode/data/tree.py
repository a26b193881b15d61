"""Tree: the files in a folder at any depth; links are followed, and no file is dropped silently."""

import os
import stat
from pathlib import Path
from typing import Final

from resode.errors import InputError

# What file managers and archives leave beside images, in lower case.
_LITTER: Final = frozenset({"__macosx", "@eadir", "desktop.ini", "thumbs.db"})


def ignored(name: str) -> bool:
    """Whether a name is hidden (it begins with a dot), or that of a leftover such as `__MACOSX`."""
    return name.startswith(".") or name.lower() in _LITTER


def files(folder: Path) -> list[Path]:
    """The files in a folder at any depth, sorted, without those that are `ignored`.

    What cannot be followed is one of the files: a broken link, or a folder that cannot be listed. Reading it
    fails with the reason, so that it is treated like an image that cannot be read.

    Raises:
        InputError: a link to a folder that it lies in.
    """
    found: list[Path] = []
    _collect(folder, _above(folder), found)
    return sorted(found)


def _above(folder: Path) -> frozenset[tuple[int, int]]:
    """The folder and those that it lies in, as a link to it or not."""
    return frozenset(filter(None, map(_identity, (folder, *folder.resolve().parents))))


def _collect(folder: Path, above: frozenset[tuple[int, int]], found: list[Path]) -> None:
    """Add the files in a folder to `found`; `above` are the folder and those that it lies in."""
    try:
        children = sorted(path for path in folder.iterdir() if not ignored(path.name))
    except OSError:
        found.append(folder)
        return
    for path in children:
        identity = _identity(path)
        if identity is None:
            found.append(path)
        elif identity in above:
            raise InputError(
                f"{text(path)} is a link to {text(path.resolve())}, a folder that it lies in; remove the link"
            )
        else:
            _collect(path, above | (_above(path) if path.is_symlink() else {identity}), found)


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder, through links or not; false where it cannot be followed."""
    return _identity(path) is not None


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a folder, links followed; None for what is no folder or cannot be followed."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def text(path: str | os.PathLike[str]) -> str:
    """A path as valid text: bytes that are not UTF-8 are written `\\xe9`."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
