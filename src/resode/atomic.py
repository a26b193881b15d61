"""Atomic writes of files, SHA-256 digests, and the cache folder.

A file is written to a temporary sibling, fsynced, and renamed over its target; then the folder is fsynced. An
interrupted or failed write leaves the previous file untouched.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resode.errors import ResourceError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager: turns an `OSError` into a `ResourceError` that names `path` and the reason."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror or error})") from error


def sync(path: Path) -> None:
    """Flush a file or a folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a file atomically.

    Args:
        path: the file; its folder is created if needed.
        fill: writes the content to the temporary path that it is given.

    Raises:
        ResourceError: the folder is read-only or the disk is full; `path` is unchanged.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            fill(temporary)
            temporary.chmod(0o644)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text atomically, as UTF-8."""

    def fill(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write(path, fill)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def cache_folder(name: str) -> Path:
    """The folder `name` for files that can be recomputed or downloaded again.

    It lies in $RESODE_CACHE, or in `resode` below $XDG_CACHE_HOME or ~/.cache.

    Raises:
        RuntimeError: there is no home directory.
    """
    if own := os.environ.get("RESODE_CACHE"):
        return Path(own).expanduser() / name
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "resode" / name
    return Path("~/.cache/resode").expanduser() / name


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
