"""What a source holds before its images are decoded: labels first, images on demand.

Parquet files, CIFAR batches and folders all become a `Container`; labels and classes are checked
before the first image is touched.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resode.data.images import Labels, Pixels, check_labels
from resode.errors import InputError

Content = bytes | Path | Pixels  # an image file, where it lies, or pixels (H, W, C) decoded already
OnBadImage = Literal["error", "skip"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """One split: `labels` (N,) and, each time `images()` is called, N pairs of a name and a content."""

    labels: Labels
    images: Callable[[], Iterator[tuple[str, Content]]]


@dataclass(frozen=True, eq=False)
class Container:
    """A source that has been opened.

    Attributes:
        where: how errors call it.
        classes: the class names it gives, or None where its labels are bare numbers.
        train: the training split.
        test: the test split, if there is one.
        content: the key of what it holds, computed from the bytes of its files; None: do not cache.
    """

    where: str
    classes: tuple[str, ...] | None
    train: Encoded
    test: Encoded | None
    content: Callable[[], str] | None = None

    def check(self, classes: tuple[str, ...]) -> None:
        """Raise `InputError` where labels and `classes` do not fit, before anything is decoded."""
        check_labels(self.where, classes, self.train.labels, self.test.labels if self.test else None)

    def numbered_classes(self) -> tuple[str, ...]:
        """The names 0, 1, ... up to the largest training label."""
        count = int(self.train.labels.max()) + 1 if len(self.train.labels) else 0
        if count > max(1000, len(self.train.labels)):
            raise InputError(f"{self.where}: label {count - 1} is out of range; number the classes from 0")
        return tuple(str(label) for label in range(count))


def file_hash(path: Path, algorithm: str = "blake2b") -> str:
    """The hash of a file's bytes (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def content_of(root: Path, files: Iterable[Path]) -> str:
    """One key for a set of files: a hash over their names relative to `root` and their contents."""
    paths = sorted(files)
    try:
        with ThreadPoolExecutor(4) as pool:
            hashes = list(pool.map(file_hash, paths))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror})") from error
    lines = (
        f"{found} {path.relative_to(root).as_posix()}\n" for path, found in zip(paths, hashes, strict=True)
    )
    return hashlib.blake2b("".join(lines).encode()).hexdigest()
