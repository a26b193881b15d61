"""A data set before decoding: labels in memory, images on demand.

Parquet files, CIFAR batches and folders are all opened as a `RawDataset`; labels and classes are checked
before the first image is decoded.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resode.data.folder_split import FolderSplit
from resode.data.images import Labels, Pixels, check_labels
from resode.errors import InputError
from resode.progress import report

Content = bytes | Path | Pixels  # an image file's bytes, its path, or decoded pixels (H, W, C)
OnBadImage = Literal["error", "skip"]


@dataclass(frozen=True, eq=False)
class RawSplit:
    """One split: `labels` (N,), and `images()`, which yields N pairs (name, content) at each call."""

    labels: Labels
    images: Callable[[], Iterator[tuple[str, Content]]]


@dataclass(frozen=True, eq=False)
class RawDataset:
    """An opened data set whose images are not decoded yet.

    Attributes:
        where: its name in error messages.
        classes: the class names, or None if the source has only numbers.
        train: the training split.
        test: the test split, or None.
        content: computes the cache key from the bytes of its files; None: do not cache.
        split: how `test` was taken from the images; None: the source has test images of its own, or none.
        notes: what the user should know of how the source was read, a line each.
    """

    where: str
    classes: tuple[str, ...] | None
    train: RawSplit
    test: RawSplit | None
    content: Callable[[], str] | None = None
    split: FolderSplit | None = None
    notes: tuple[str, ...] = ()

    def check(self, classes: tuple[str, ...]) -> None:
        """Raise `InputError` if the labels do not match `classes`, before anything is decoded."""
        check_labels(self.where, classes, self.train.labels, self.test.labels if self.test else None)

    def numbered_classes(self) -> tuple[str, ...]:
        """Class names "0", "1", ... up to the largest training label.

        Raises:
            InputError: the largest label is far above the number of images.
        """
        count = int(self.train.labels.max()) + 1 if len(self.train.labels) else 0
        if count > max(1000, len(self.train.labels)):
            raise InputError(f"{self.where}: label {count - 1} is out of range; number the classes from 0")
        return tuple(str(label) for label in range(count))


def file_hash(path: Path, algorithm: str = "blake2b") -> str:
    """Hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def image_hash(path: Path) -> str:
    """Hash of an image file's bytes; "unreadable" for a file that cannot be read."""
    try:
        return file_hash(path) if path.is_file() else "unreadable"
    except OSError:
        return "unreadable"


def content_key(root: Path, files: Iterable[Path], hash: Callable[[Path], str] = file_hash) -> str:
    """Hash over the names (relative to `root`) and contents of a set of files, in hexadecimal.

    Args:
        root: the folder.
        files: paths below it.
        hash: of a file.

    Raises:
        InputError: a file cannot be read.
    """
    paths = sorted(files)
    pool = ThreadPoolExecutor(4)
    hashes = []
    try:
        for done, found in enumerate(pool.map(hash, paths), start=1):
            hashes.append(found)
            report(f"checking {root}", done / len(paths))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror})") from error
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C no file is waited for but those in work
    lines = (
        f"{digest} {path.relative_to(root).as_posix()}\n" for path, digest in zip(paths, hashes, strict=True)
    )
    return hashlib.blake2b("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
