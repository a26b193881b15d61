"""Decoding: a `RawDataset` to arrays of one shape, in a few threads.

With `image_size`, images are scaled and cropped to that side (`image_file.resize_and_crop`); otherwise all
must have the same size. If any image is in colour the whole data set is RGB; C = 1 only if all are grey.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from resode.data.image_file import decode, resize_and_crop
from resode.data.images import Images, Labels, Pixels
from resode.data.raw import Content, OnBadImage, RawDataset, RawSplit
from resode.errors import InputError, ResodeError, ResourceError
from resode.progress import report

_CHUNK = 64  # images that a thread decodes at a time
_THREADS = min(8, os.cpu_count() or 1)


def decode_dataset(
    raw: RawDataset, *, image_size: int | None, on_bad_image: OnBadImage
) -> tuple[Images, Images | None, tuple[str, ...]]:
    """Decode both splits.

    Args:
        raw: the opened data set.
        image_size: side of the decoded images in pixels; None keeps their own size, which must be equal.
        on_bad_image: "error" raises at the first image that cannot be decoded; "skip" drops such images.

    Returns:
        train, test, and a message for each skipped image.

    Raises:
        InputError: unequal sizes without `image_size`, no image left, or a file that is not an image.
        IntegrityError: a corrupt or hostile image.
        ResourceError: the decoded images exceed the memory.
    """
    skipped: list[str] = []
    splits = [split for split in (raw.train, raw.test) if split is not None]
    total, done = sum(len(split.labels) for split in splits), 0

    def decoded(images: int) -> None:
        nonlocal done
        done += images
        report(f"reading {raw.where}", done / max(total, 1))

    with _decoders() as (pool, stop):
        buffers = [
            _decode_split(split, pool, stop, image_size, skipped if on_bad_image == "skip" else None, decoded)
            for split in splits
        ]
    _unify_shapes(buffers)
    train, *test = [buffer.images(raw.where, skipped) for buffer in buffers]
    return train, test[0] if test else None, tuple(skipped)


@contextlib.contextmanager
def _decoders() -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads that decode, and an event that ends their work early, after an error or Ctrl-C."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield pool, stop
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Buffer:
    """Decoded images of one split: allocated at the first image, widened to RGB at the first in colour."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.kept: list[int] = []
        self.first = ""
        self.pixels: Pixels | None = None

    def add(self, position: int, name: str, image: Pixels) -> None:
        if self.pixels is None:
            self.first, self.pixels = name, _allocate((len(self.labels), *image.shape))
        if image.shape[:2] != self.pixels.shape[1:3]:
            raise _unequal(self.first, self.pixels.shape[1:3], name, image.shape[:2])
        if image.shape[2] > self.pixels.shape[3]:
            self.widen()
        self.pixels[len(self.kept)] = image
        self.kept.append(position)

    def widen(self) -> None:
        assert self.pixels is not None
        grey, used = self.pixels, len(self.kept)
        self.pixels = _allocate((*grey.shape[:3], 3))
        self.pixels[:used] = grey[:used]

    def images(self, where: str, skipped: list[str]) -> Images:
        if self.pixels is None:
            raise InputError(f"{where} has no image" + (f" left; {skipped[0]}" if skipped else ""))
        pixels = self.pixels[: len(self.kept)]
        pixels.flags.writeable = False
        return Images.of(pixels, self.labels[self.kept])


def _decode_split(
    split: RawSplit,
    pool: ThreadPoolExecutor,
    stop: threading.Event,
    size: int | None,
    skipped: list[str] | None,
    on_images: Callable[[int], None],
) -> _Buffer:
    buffer = _Buffer(split.labels)
    images, position = split.images(), 0
    while window := list(islice(images, _CHUNK * _THREADS)):
        chunks = [window[start : start + _CHUNK] for start in range(0, len(window), _CHUNK)]
        for decoded in pool.map(lambda chunk: list(_decode_chunk(chunk, size, stop)), chunks):
            for name, result in decoded:
                if isinstance(result, np.ndarray):
                    buffer.add(position, name, result)
                elif skipped is None:
                    raise type(result)(f"{result}; --on-bad-image skip drops it") from result
                else:
                    skipped.extend(result.messages)
                position += 1
            on_images(len(decoded))
    return buffer


def _decode_chunk(
    chunk: list[tuple[str, Content]], size: int | None, stop: threading.Event
) -> Iterator[tuple[str, Pixels | ResodeError]]:
    for name, content in chunk:
        if stop.is_set():
            return
        try:
            image = content if isinstance(content, np.ndarray) else decode(content, name=name)
        except ResodeError as error:
            yield name, error
        else:
            if size is not None:
                image = resize_and_crop(image, size=(size, size), channels=image.shape[2])
            yield name, image


def _unify_shapes(buffers: list[_Buffer]) -> None:
    """Give both splits the same number of channels; raise if their sizes differ."""
    filled = [buffer for buffer in buffers if buffer.pixels is not None]
    shapes = [buffer.pixels.shape[1:] for buffer in filled if buffer.pixels is not None]
    for buffer, shape in zip(filled, shapes, strict=True):
        if shape[:2] != shapes[0][:2]:
            raise _unequal(filled[0].first, shapes[0], buffer.first, shape)
        if shape[2] < max(other[2] for other in shapes):
            buffer.widen()


class UnequalSizesError(InputError):
    """Images of different sizes, and no size to bring them to."""


def _unequal(first: str, shape: tuple[int, ...], name: str, other: tuple[int, ...]) -> InputError:
    return UnequalSizesError(
        f"images of unequal size: {first} is {shape[0]}x{shape[1]}, {name} is {other[0]}x{other[1]}; "
        "give one size: --set data.image_size=32, or load_data(..., image_size=32)"
    )


def _allocate(shape: tuple[int, ...]) -> Pixels:
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        size = np.prod(shape, dtype=float) / 2**30
        raise ResourceError(
            f"{shape[0]:,} images of {shape[1]}x{shape[2]} need {size:,.1f} GiB of memory; "
            "set a smaller image_size"
        ) from error
