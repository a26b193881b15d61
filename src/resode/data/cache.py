"""On-disk cache of decoded data sets: one safetensors file each, keyed by content.

    $RESODE_CACHE or $XDG_CACHE_HOME/resode or ~/.cache/resode
        data/<key>.safetensors    {train,test}.{pixels,labels,digests}; metadata: skipped images, CRC-32s
        verified-<user>/<key>     which files this user has verified: machine, device, inode, size, times

Pixels are memory-mapped, not copied. Files are written atomically, so several processes may fill the cache at
once; they are as readable as the umask says, so a group may share them. The CRC-32 of each tensor is verified
once on a machine, and again when the file changes. A damaged file is never used: a warning names it, and the
images are decoded again. If the cache cannot be written, nothing is cached.
"""

import contextlib
import hashlib
import json
import os
import platform
import stat
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from resode import atomic
from resode.data.images import Images, Labels
from resode.errors import ResodeError

FORMAT: Final = 2  # increase whenever decoding changes what it returns
ATTEMPTS: Final = 3  # to read a file that others replace meanwhile
MACHINES: Final = 16  # as many records of verified files are kept for each key
_FIELDS: Final = ("pixels", "labels", "digests")

Decoded = tuple[Images, Images | None, tuple[str, ...]]  # train, test, skipped


def directory() -> Path:
    """The folder of cached data sets."""
    return atomic.cache_folder("data")


def key(content: str, classes: Sequence[str], labels: Sequence[Labels], **options: Any) -> str:
    """Cache key of this content, decoded with these options.

    Args:
        content: a hash of the files.
        classes: their names; label i is `classes[i]`.
        labels: of each split: which class a name in the files stands for may change with what reads them.
        options: of decoding.
    """
    mapping = hashlib.sha256(b"".join(each.tobytes() for each in labels)).hexdigest()
    parts = [FORMAT, content, [*classes], mapping, options]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read(key: str) -> Decoded | None:
    """Read a cached data set, its pixels memory-mapped; None if it is missing.

    Also None, with a warning, if it is damaged or cannot be read.
    """
    try:
        path = _path(key)
    except RuntimeError:  # no home directory
        return None
    try:
        for _ in range(ATTEMPTS):
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                raise ValueError("not a file")
            found = _read(key, path, status)
            if _identity(path.stat()) == _identity(status):  # else another process has just replaced it
                return found
        return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ResodeError) as error:
        reason = (
            f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else "are damaged"
        )
    warnings.warn(f"{path}: the cached images {reason}; they are decoded again", stacklevel=2)
    return None


def _read(key: str, path: Path, status: os.stat_result) -> Decoded:
    """The content of a file of this status."""
    arrays, metadata = _mapped(path)
    if not _is_verified(key, status):
        _verify(path)
        _note_verified(key, status)
    train, test = _images(arrays, "train"), _images(arrays, "test")
    if train is None:
        raise ValueError("no images")
    return train, test, tuple(json.loads(metadata["skipped"]))


def write(key: str, train: Images, test: Images | None, skipped: tuple[str, ...]) -> None:
    """Write a decoded data set to the cache, if the cache can be written."""
    splits = {"train": train} | ({"test": test} if test is not None else {})
    arrays = {
        f"{split}.{field}": np.ascontiguousarray(getattr(images, field))
        for split, images in splits.items()
        for field in _FIELDS
    }
    listed = json.dumps(skipped)
    metadata = {"skipped": listed, "crc32": json.dumps(_checksums(arrays, listed))}
    try:
        atomic.write(_path(key), lambda temporary: save_file(arrays, temporary, metadata))
        atomic.remove_stale(directory())
    except (OSError, RuntimeError, SafetensorError, ResodeError):  # read-only, full, or no home directory
        return


def _path(key: str) -> Path:
    return directory() / f"{key}.safetensors"


def _mapped(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """The arrays of a file, memory-mapped and read-only, and its metadata."""
    with safe_open(path, framework="pt") as file:  # PyTorch tensors are mapped, NumPy arrays copied
        arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 - no mapping
        metadata = file.metadata()
    for array in arrays.values():
        array.flags.writeable = False
    return arrays, metadata


def _verify(path: Path) -> None:
    """Raise `ValueError` if a CRC-32 differs. A mapping of its own, as this pages in all pixels."""
    arrays, metadata = _mapped(path)
    if _checksums(arrays, metadata["skipped"]) != json.loads(metadata["crc32"]):
        raise ValueError(f"{path}: damaged")


def _checksums(arrays: dict[str, np.ndarray[Any, Any]], skipped: str) -> dict[str, str]:
    found = {name: array.data for name, array in arrays.items()} | {"skipped": skipped.encode()}
    return {name: str(zlib.crc32(data)) for name, data in found.items()}


# ---------------------------------------------------------------- what was verified


def _identity(status: os.stat_result) -> list[int | str]:
    """What changes when somebody writes to a file, or puts another in its place."""
    places = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return [platform.node(), *places]


def _is_verified(key: str, status: os.stat_result) -> bool:
    return _identity(status) in _verified(key)


def _verified(key: str) -> list[Any]:
    """The files of this key that were verified on some machine, the newest last."""
    try:
        found = json.loads((atomic.private_folder("verified") / key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _note_verified(key: str, status: os.stat_result) -> None:
    """Remember a file, if there is a place to."""
    kept = [*_verified(key), _identity(status)][-MACHINES:]
    with contextlib.suppress(OSError, ResodeError):
        atomic.write_text(atomic.private_folder("verified") / key, json.dumps(kept))


def _images(arrays: dict[str, np.ndarray[Any, Any]], split: str) -> Images | None:
    if f"{split}.pixels" not in arrays:
        return None
    return Images(arrays[f"{split}.pixels"], *(np.array(arrays[f"{split}.{name}"]) for name in _FIELDS[1:]))
