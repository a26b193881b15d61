"""Decoded images on disk, keyed by the content they were decoded from.

    $RESODE_CACHE or $XDG_CACHE_HOME/resode or ~/.cache/resode
        data/<key>/{train,test}_{pixels,labels,digests}.npy + entry.json

`entry.json` lists size and CRC-32 of each file, against damage. An entry is written to a sibling and
renamed, so several processes may fill the cache at once; it is verified on every read, and a damaged one
counts as missing.
Where the cache cannot be written, nothing is cached.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from resode.atomic import cache_folder
from resode.data.images import Images
from resode.errors import ResodeError

FORMAT: Final = 1  # raise whenever decoding changes what it returns
_FIELDS: Final = ("pixels", "labels", "digests")
_ABANDONED: Final = 24 * 3600  # seconds after which another process's unfinished entry is removed

Decoded = tuple[Images, Images | None, tuple[str, ...]]  # train, test, skipped


def directory() -> Path:
    """Where decoded data sets are kept."""
    return cache_folder("data")


def key(content: str, **options: Any) -> str:
    """The name of the entry for this content, decoded with these options."""
    return hashlib.sha256(json.dumps([FORMAT, content, options], sort_keys=True).encode()).hexdigest()


def read(key: str) -> Decoded | None:
    """The entry of this key with memory-mapped pixels, or None where there is no whole one."""
    try:
        folder = directory() / key
        entry = json.loads((folder / "entry.json").read_text())
        for name, listed in entry["files"].items():
            path = folder / name
            if path.stat().st_size != listed["bytes"] or _checksum(path) != listed["crc32"]:
                return None
        train, test = (_read_split(folder, split, entry["files"]) for split in ("train", "test"))
        return None if train is None else (train, test, tuple(entry["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ResodeError):
        return None


def write(key: str, train: Images, test: Images | None, skipped: tuple[str, ...]) -> None:
    """Store an entry, unless the cache cannot be written or another process was faster."""
    temporary: Path | None = None
    try:
        root = directory()
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        temporary = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=root))
        files: dict[str, dict[str, Any]] = {}
        for split, images in (("train", train), ("test", test)):
            if images is not None:
                files |= _write_split(temporary, split, images)
        (temporary / "entry.json").write_text(json.dumps({"skipped": skipped, "files": files}, indent=1))
        _install(temporary, root / key)
    except (OSError, RuntimeError):  # read-only, full, or no home directory
        return
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def _read_split(folder: Path, split: str, files: dict[str, Any]) -> Images | None:
    if f"{split}_pixels.npy" not in files:
        return None
    arrays = [np.load(folder / f"{split}_{field}.npy", mmap_mode="r") for field in _FIELDS]
    return Images(arrays[0], *(np.array(array) for array in arrays[1:]))


def _write_split(folder: Path, split: str, images: Images) -> dict[str, dict[str, Any]]:
    files = {}
    for field in _FIELDS:
        path = folder / f"{split}_{field}.npy"
        np.save(path, getattr(images, field), allow_pickle=False)
        files[path.name] = {"bytes": path.stat().st_size, "crc32": _checksum(path)}
    return files


def _install(temporary: Path, final: Path) -> None:
    """Rename into place; an entry that is there already stays if it is whole, and gives way if damaged."""
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir() or read(final.name) is not None:
            return
        damaged = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".tmp", dir=final.parent))
        final.rename(damaged / "entry")
        temporary.rename(final)
        shutil.rmtree(damaged, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    for path in root.glob("*.tmp"):
        with contextlib.suppress(OSError):  # its owner has just finished
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path)
