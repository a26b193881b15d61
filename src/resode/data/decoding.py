"""A container's images -> arrays of one shape, in a few threads.

The size is `image_size` x `image_size` where that is given (`picture.fit`); otherwise all images must be
equal. One colour image makes the whole data set RGB; only if every image is grey is C = 1.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from resode.data.container import Container, Content, Encoded, OnBadImage
from resode.data.images import Images, Labels, Pixels
from resode.data.picture import decode, fit
from resode.errors import InputError, ResodeError, ResourceError

_PART = 256  # images a thread decodes at a time
_THREADS = min(8, os.cpu_count() or 1)


def decode_container(
    container: Container, *, image_size: int | None, on_bad_image: OnBadImage
) -> tuple[Images, Images | None, tuple[str, ...]]:
    """Decode both splits.

    Args:
        container: where the images are.
        image_size: the side in pixels, or None to keep the images' own (equal) size.
        on_bad_image: "error" raises at the first image that cannot be decoded; "skip" leaves it out.

    Returns:
        train, test and what was skipped, one line each.

    Raises:
        InputError: unequal sizes without `image_size`, no image left, a file that is no image.
        IntegrityError: a corrupt or hostile image.
        ResourceError: the decoded images do not fit into memory.
    """
    skipped: list[str] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        canvases = [
            _decode_split(split, pool, image_size, skipped if on_bad_image == "skip" else None)
            for split in (container.train, container.test)
            if split is not None
        ]
    _agree(canvases)
    train, *test = [canvas.images(container.where, skipped) for canvas in canvases]
    return train, test[0] if test else None, tuple(skipped)


class _Canvas:
    """The decoded images of one split: allocated at the first, widened at the first in colour."""

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
    split: Encoded, pool: ThreadPoolExecutor, size: int | None, skipped: list[str] | None
) -> _Canvas:
    canvas = _Canvas(split.labels)
    images, position = split.images(), 0
    while window := list(islice(images, _PART * _THREADS)):
        parts = [window[start : start + _PART] for start in range(0, len(window), _PART)]
        for part in pool.map(lambda part: list(_decode_part(part, size)), parts):
            for name, found in part:
                if isinstance(found, np.ndarray):
                    canvas.add(position, name, found)
                elif skipped is None:
                    raise type(found)(f"{found}; --on-bad-image skip leaves it out") from found
                else:
                    skipped.extend(found.messages)
                position += 1
    return canvas


def _decode_part(
    part: list[tuple[str, Content]], size: int | None
) -> Iterator[tuple[str, Pixels | ResodeError]]:
    for name, content in part:
        try:
            image = content if isinstance(content, np.ndarray) else decode(content, name=name)
        except ResodeError as error:
            yield name, error
        else:
            yield name, image if size is None else fit(image, size=(size, size), channels=image.shape[2])


def _agree(canvases: list[_Canvas]) -> None:
    """Both splits get one size and one number of channels."""
    found = [canvas for canvas in canvases if canvas.pixels is not None]
    shapes = [canvas.pixels.shape[1:] for canvas in found if canvas.pixels is not None]
    for canvas, shape in zip(found, shapes, strict=True):
        if shape[:2] != shapes[0][:2]:
            raise _unequal(found[0].first, shapes[0], canvas.first, shape)
        if shape[2] < max(other[2] for other in shapes):
            canvas.widen()


def _unequal(first: str, shape: tuple[int, ...], name: str, other: tuple[int, ...]) -> InputError:
    return InputError(
        f"images of unequal size: {first} is {shape[0]}x{shape[1]}, {name} is {other[0]}x{other[1]}; "
        "give one size: --set data.image_size=32"
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
