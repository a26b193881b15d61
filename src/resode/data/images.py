"""A decoded data set: pixels of 8 bits or in float32, integer labels, and a hash of each image's content.

    digest(image)  = BLAKE2b-64(height, width, channels, label, pixels)
    fingerprint    = SHA-256(classes, shape and sorted digests of each split)

The fingerprint depends on every pixel, label and class name, but not on the order of the images or on the
file format.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from resode.data.folder_split import FolderSplit
from resode.errors import InputError

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]

_CHUNK = 4096  # images hashed at a time
_DTYPES = (np.uint8, np.float32)


@dataclass(frozen=True, eq=False)
class Images:
    """One split, in the order of its source.

    Attributes:
        pixels: `(N, H, W, C)` uint8 with C = 1 (grey) or 3 (RGB), memory-mapped if read from the cache; or
            float32, as arrays given in Python may be. 8-bit pixels p stand for the values p / 255.
        labels: `(N,)` int64.
        digests: `(N,)` uint64, the content hash of each (pixels, label).

    Raises:
        InputError: an array has another shape or dtype.
    """

    pixels: Pixels | Values
    labels: Labels
    digests: Digests

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape or self.pixels.dtype not in _DTYPES:
            raise InputError(
                f"images have shape {shape} and dtype {self.pixels.dtype}; "
                "give uint8 or float32 (N, H, W, 1 or 3)"
            )
        for name, dtype in (("labels", np.int64), ("digests", np.uint64)):
            array = getattr(self, name)
            if array.shape != shape[:1] or array.dtype != dtype:
                raise InputError(
                    f"{name} have shape {array.shape} and dtype {array.dtype}; "
                    f"give {np.dtype(dtype)} ({shape[0]},), one for each image"
                )

    def __repr__(self) -> str:
        count, height, width, channels = self.pixels.shape
        return f"Images({count:,} of {height}x{width}, {channels} channel{'s' * (channels > 1)})"

    @classmethod
    def of(cls, pixels: Pixels | Values, labels: npt.NDArray[np.integer]) -> "Images":
        """Make a split from `pixels` (N, H, W, C) and `labels` (N,); computes the digests.

        Raises:
            InputError: other shapes, or labels that are not integers.
        """
        labels = np.asarray(labels)
        if pixels.ndim != 4 or labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(
                f"pixels {pixels.shape} and labels {labels.shape} of dtype {labels.dtype} do not match; "
                "give (N, H, W, C) and N integers"
            )
        integers: Labels = labels.astype(np.int64)
        return cls(pixels, integers, digests(pixels, integers))

    @property
    def unit(self) -> int:
        """What pixels are divided by to get the values that mean and std refer to."""
        return 255 if self.pixels.dtype == np.uint8 else 1

    @property
    def levels(self) -> Pixels:
        """The pixels as grey levels from 0 to 255.

        Raises:
            InputError: they are float32.
        """
        if self.pixels.dtype != np.uint8:
            raise InputError("these images are floats; grey levels are needed: give uint8 pixels")
        return cast(Pixels, self.pixels)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A decoded data set.

    Attributes:
        name: the name given by the user.
        classes: the class names; label i is `classes[i]`.
        train: training images (a validation set is split from them).
        test: test images, or None if the source has none.
        skipped: a message for each image dropped by `on_bad_image="skip"`.
        fingerprint: order-independent content hash of both splits and the class names (hex).
        split: how the test images were chosen, in a folder that has none of its own.
        notes: what the user should know of how the source was read, a line each.

    Raises:
        InputError: no class, a label out of range, a class without training images, or splits of unequal
            image shapes.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images | None
    skipped: tuple[str, ...]
    fingerprint: str
    split: FolderSplit | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_labels(self.name, self.classes, self.train.labels, self.test.labels if self.test else None)
        if self.test and self.test.pixels.shape[1:] != self.train.pixels.shape[1:]:
            raise InputError(
                f"{self.name}: training images are (H, W, C) = {self.train.pixels.shape[1:]}, "
                f"test images {self.test.pixels.shape[1:]}; make them equal"
            )

    def __repr__(self) -> str:
        names = [*self.classes[:4], "...", self.classes[-1]] if len(self.classes) > 6 else self.classes
        return (
            f"Dataset({self.name}: train={self.train}, test={self.test}, "
            f"{len(self.classes)} classes: {', '.join(names)})"
        )

    @classmethod
    def of(
        cls,
        name: str,
        classes: Sequence[str],
        train: Images,
        test: Images | None = None,
        skipped: Sequence[str] = (),
    ) -> "Dataset":
        """Make a data set from its splits; computes the fingerprint."""
        return cls(name, tuple(classes), train, test, tuple(skipped), fingerprint(classes, train, test))


def check_labels(where: str, classes: Sequence[str], train: Labels, test: Labels | None) -> None:
    """Raise `InputError` for no class or equal names, a label out of range, or a class without an image."""
    if not classes:
        raise InputError(f"{where} has no class; give at least one class with images")
    if twice := sorted(name for name, number in Counter(classes).items() if number > 1):
        raise InputError(f"{where}: several classes are called '{twice[0]}'; give each a name of its own")
    last = train.max(initial=1)
    if (
        len(train)
        and train.min() == 1
        and (last == len(classes) or (last == len(classes) - 1 and classes[0] == "0"))
    ):
        raise InputError(f"{where}: its labels run from 1 to {last}; subtract 1, the first class is 0")
    for split, labels in (("training", train), ("test", test)):
        if labels is None:
            continue
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            raise InputError(
                f"{where}: label {labels[wrong[0]]} of {split} image {wrong[0]} is out of range; "
                f"{len(classes)} classes are 0 to {len(classes) - 1}"
            )
    empty = np.flatnonzero(np.bincount(train, minlength=len(classes)) == 0)
    if len(empty):
        names = ", ".join(f"'{classes[i]}'" for i in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise InputError(f"{where}: no training image of class {names}; add some or remove the class")


def digests(pixels: Pixels | Values, labels: Labels) -> Digests:
    """Content hash of each (pixels, label): `(N,)` uint64; takes about 4 microseconds for 3 kB."""
    count, shape = len(pixels), pixels.shape[1:]
    head = np.empty((min(count, _CHUNK), 4), dtype="<i8")
    head[:, :3] = shape
    hashes = bytearray()
    for start in range(0, count, _CHUNK):
        chunk = (
            np.ascontiguousarray(pixels[start : start + _CHUNK])
            .reshape(-1, int(np.prod(shape)))
            .view(np.uint8)
        )
        head[: len(chunk), 3] = labels[start : start + _CHUNK]
        rows = np.concatenate([head[: len(chunk)].view(np.uint8), chunk], axis=1)
        for row in rows:
            hashes += hashlib.blake2b(row, digest_size=8).digest()
    return np.frombuffer(bytes(hashes), dtype="<u8").astype(np.uint64)


def fingerprint(classes: Sequence[str], train: Images, test: Images | None) -> str:
    """SHA-256 of the class names and of each split's shape and sorted digests (64 hex digits)."""
    content = hashlib.sha256(json.dumps(["resode-data-1", *classes]).encode())
    for split, images in (("train", train), ("test", test)):
        if images is not None:
            content.update(f"\n{split} {images.pixels.shape}\n".encode())
            content.update(np.sort(images.digests).astype("<u8").tobytes())
    return content.hexdigest()
