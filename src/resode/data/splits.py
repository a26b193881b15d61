"""Validation split and channel statistics, both functions of the content alone.

The validation set has the same share of each class, rounded by largest remainder. Within a class it takes the
first images of a random order of content hashes that depends on the seed. The order and the file format of
the source have no influence.
"""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from resode import randomness
from resode.data.images import Images, Labels
from resode.errors import InputError

_CHUNK = 1024  # images summed at a time: 1024 * 255^2 < 2^32


def validation_split(images: Images, validation: int | float, seed: int) -> tuple[Labels, Labels]:
    """Split the training images at random, stratified by class.

    Args:
        images: the training images.
        validation: size of the validation set, a count (int) or a fraction (float, below 1); 0: empty.
        seed: seed of the random choice.

    Returns:
        Sorted positions (int64) of the training and of the validation images.

    Raises:
        InputError: a negative size, a fraction that rounds to 0, or a size that would leave some class
            without a training image.
    """
    labels = images.labels
    count = _count(validation, len(labels))
    shares = _shares(np.bincount(labels), count, validation)
    keys = randomness.bits(seed, "validation", 0, torch.from_numpy(images.digests.astype(np.int64))).numpy()
    order = np.lexsort((images.digests, keys, labels))
    rank = np.empty_like(order)
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))[:-1]])
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    chosen = rank < shares[labels]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def channel_statistics(
    images: Images, index: npt.NDArray[np.integer]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of `pixels / 255`, over the images of `index`.

    Of float32 pixels, as they are: the moments are summed in float64.

    From the exact integer sums S of p and Q of p^2 over n pixels: mean = S / (255 n) and the population
    standard deviation std = sqrt(n Q - S^2) / (255 n).

    Raises:
        InputError: `index` is empty.
    """
    if not len(index):
        raise InputError("channel statistics of no image; keep some training images")
    if images.pixels.dtype != np.uint8:
        return _float_statistics(images, index)
    height, width, channels = images.pixels.shape[1:]
    first, second = np.zeros((2, height * width * channels), dtype=np.uint64)
    for start in range(0, len(index), _CHUNK):
        pixels = images.pixels[index[start : start + _CHUNK]].reshape(-1, len(first))
        squares = pixels.astype(np.uint16) ** 2
        first += pixels.sum(0, dtype=np.uint32)
        second += squares.sum(0, dtype=np.uint32)
    sums, squared = (total.reshape(-1, channels).sum(0).tolist() for total in (first, second))
    count = len(index) * height * width
    mean = tuple(s / (255 * count) for s in sums)
    std = tuple(math.sqrt(count * q - s * s) / (255 * count) for s, q in zip(sums, squared, strict=True))
    return mean, std


def _float_statistics(
    images: Images, index: npt.NDArray[np.integer]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel statistics of float32 pixels, the deviations taken from the mean."""
    chunks = [index[start : start + _CHUNK] for start in range(0, len(index), _CHUNK)]
    count = len(index) * math.prod(images.pixels.shape[1:3])

    def average(power: int, centre: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        sums = [((images.pixels[c].astype(np.float64) - centre) ** power).sum((0, 1, 2)) for c in chunks]
        return np.asarray(sum(sums) / count)

    mean = average(1, np.zeros(images.pixels.shape[3]))
    return tuple(mean.tolist()), tuple(np.sqrt(average(2, mean)).tolist())


def _count(validation: int | float, total: int) -> int:
    if isinstance(validation, float):
        count = round(validation * total) if 0 <= validation < 1 else -1
        if validation > 0 and count == 0:
            raise InputError(f"validation={validation} of {total} images is none; give more, or 0 for none")
    else:
        count = validation
    if isinstance(validation, bool) or not 0 <= count < total:
        fix = "give a count below that, or a fraction: --set data.validation=0.1"
        raise InputError(f"validation={validation} of {total:,} training images is impossible; {fix}")
    return count


def _shares(sizes: Labels, count: int, validation: int | float) -> Labels:
    """Validation images of each class: proportional, rounded by largest remainder, at most size - 1."""
    limit = np.maximum(sizes - 1, 0)
    if count > limit.sum():
        raise InputError(f"validation={validation} leaves some class without a training image; give less")
    exact = [Fraction(count * int(size), int(sizes.sum())) for size in sizes]
    shares = np.minimum([int(share) for share in exact], limit)
    order = sorted(range(len(sizes)), key=lambda label: (math.floor(exact[label]) - exact[label], label))
    while (missing := count - int(shares.sum())) > 0:
        open_classes = [label for label in order if shares[label] < limit[label]]
        shares[open_classes[:missing]] += 1
    return shares
