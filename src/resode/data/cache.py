"""On-disk cache of decoded data sets: one safetensors file each, keyed by content.

    $RESODE_CACHE or $XDG_CACHE_HOME/resode or ~/.cache/resode
        data/<key>.safetensors    {train,test}.{pixels,labels,digests}; metadata: skipped images, CRC-32s

Pixels are memory-mapped, not copied. Files are written atomically, so several processes may fill the cache at
once. Every read verifies the CRC-32 of each tensor; a damaged file counts as missing and is rebuilt. If the
cache cannot be written, nothing is cached.
"""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from resode import atomic
from resode.data.images import Images
from resode.errors import ResodeError

FORMAT: Final = 2  # increase whenever decoding changes what it returns
_FIELDS: Final = ("pixels", "labels", "digests")

Decoded = tuple[Images, Images | None, tuple[str, ...]]  # train, test, skipped


def directory() -> Path:
    """The folder of cached data sets."""
    return atomic.cache_folder("data")


def key(content: str, **options: Any) -> str:
    """Cache key of this content, decoded with these options."""
    return hashlib.sha256(json.dumps([FORMAT, content, options], sort_keys=True).encode()).hexdigest()


def read(key: str) -> Decoded | None:
    """Read a cached data set, its pixels memory-mapped; None if it is missing or damaged."""
    try:
        path = _path(key)
        _verify(path)
        arrays, metadata = _mapped(path)
        train, test = _images(arrays, "train"), _images(arrays, "test")
        return None if train is None else (train, test, tuple(json.loads(metadata["skipped"])))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ResodeError):
        return None


def write(key: str, train: Images, test: Images | None, skipped: tuple[str, ...]) -> None:
    """Write a decoded data set to the cache, if the cache can be written."""
    splits = {"train": train} | ({"test": test} if test is not None else {})
    arrays = {
        f"{split}.{field}": np.ascontiguousarray(getattr(images, field))
        for split, images in splits.items()
        for field in _FIELDS
    }
    checksums = {name: str(zlib.crc32(array.data)) for name, array in arrays.items()}
    metadata = {"skipped": json.dumps(skipped), "crc32": json.dumps(checksums)}
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
    if {name: str(zlib.crc32(array.data)) for name, array in arrays.items()} != json.loads(metadata["crc32"]):
        raise ValueError(f"{path}: damaged")


def _images(arrays: dict[str, np.ndarray[Any, Any]], split: str) -> Images | None:
    if f"{split}.pixels" not in arrays:
        return None
    return Images(arrays[f"{split}.pixels"], *(np.array(arrays[f"{split}.{name}"]) for name in _FIELDS[1:]))
