"""Atomic writes of files, SHA-256 digests, and the cache folder.

A file is written to a temporary sibling, fsynced, and renamed over its target; then the folder is fsynced. An
interrupted or failed write leaves the previous file untouched; the temporary of a process that was killed is
recognised by its name, `.<name>.<random>.tmp`.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from resode.errors import InputError, ResourceError

TEMPORARY = ".tmp"  # ends the name of a temporary file
STALE = 24 * 3600  # seconds; no write takes longer


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
        InputError: `path` is a device or a pipe, which a rename would replace.
        ResourceError: the folder is read-only or the disk is full; `path` is unchanged.
    """
    with writing(path):
        special = path.exists() and not path.is_file() and not path.is_dir()
        if special or path.parent.resolve() == Path("/dev"):  # /dev/stdout is a link
            raise InputError(f"{path}: is a device or a pipe; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode  # as the umask says
            fill(temporary)
            temporary.chmod(mode)  # safetensors makes a new file that only its owner reads
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
        remove_stale(path.parent, [path.name])


def temporaries(folder: Path, names: Collection[str] | None = None) -> list[Path]:
    """Temporary files in `folder` of writes of these names (default: any) whose process was killed."""
    name = ".+" if names is None else "|".join(map(re.escape, names))
    written = re.compile(rf"\.({name})\.[0-9a-z_]{{8}}({re.escape(TEMPORARY)})?")
    return [path for path in folder.iterdir() if written.fullmatch(path.name)]


def remove_stale(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove the temporaries of these names that a killed process left long ago."""
    for temporary in temporaries(folder, names):
        with contextlib.suppress(OSError):  # its owner has just finished
            if time.time() - temporary.stat().st_mtime > STALE:
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write text atomically, as UTF-8; bytes of names that are not UTF-8 are escaped as in JSON."""

    def fill(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

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


def private_folder(name: str) -> Path:
    """A cache folder for code, which nobody else can write to: made with mode 0700.

    Where the cache has a folder of that name that belongs to somebody else, or cannot be written, it is a
    temporary one for the life of this process.
    """
    path = cache_folder(f"{name}-{_user()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == _user() and os.access(path, os.W_OK):
            path.chmod(0o700)
            return path
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        pass
    return _temporary_folder(name)


@functools.cache
def _temporary_folder(name: str) -> Path:
    """A folder of this process, removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix=f"resode-{name}-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def is_private(descriptor: int) -> bool:
    """Whether an open file is a regular one of this user that nobody else may write to."""
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and status.st_uid == _user() and not status.st_mode & 0o022


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
