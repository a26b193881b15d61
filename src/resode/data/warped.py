"""Rotated and scaled test images: does a network know an object that is turned, nearer or farther?

    v(x) = u(R(-a) x / s),        x = 0 at the centre,        a ~ U(-A, A),  log s ~ U(log s_min, log s_max)

read bilinearly (which blurs a little), and mirrored where the image ends. The angle and the scale of an image
are a function of the seed and of its rank by content, so that every network is asked about the same images,
whatever their order.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from resode import randomness
from resode.data.images import Dataset, Images
from resode.errors import InputError

_CHUNK = 1024  # images warped at a time


def warped(
    dataset: Dataset,
    name: str,
    *,
    degrees: float = 30.0,
    scales: tuple[float, float] = (0.7, 1.3),
    seed: int = 0,
) -> Dataset:
    """A data set with its test images rotated and scaled, one draw each; its training images are kept.

    Args:
        dataset: it needs a test split.
        name: of the result.
        degrees: the largest angle A, in both senses.
        scales: (s_min, s_max); above 1 the object is larger.
        seed: of the draws.

    Raises:
        InputError: no test images, a negative angle, scales that are no interval of positive numbers.
    """
    if dataset.test is None:
        raise InputError(f"{dataset.name} has no test images to rotate and scale")
    if not (0 <= degrees < math.inf and 0 < scales[0] <= scales[1] < math.inf):
        raise InputError(
            f"degrees {degrees!r}, scales {scales!r}: a number of at least 0 and an interval above 0 are "
            "needed"
        )
    test = dataset.test
    rank = torch.empty(len(test), dtype=torch.int64)
    rank[torch.from_numpy(np.argsort(test.digests, kind="stable"))] = torch.arange(len(test))
    angle = (2 * randomness.uniform(seed, "angle", 0, rank) - 1) * math.radians(degrees)
    low, high = map(math.log, scales)
    scale = torch.exp(low + (high - low) * randomness.uniform(seed, "scale", 0, rank))
    pixels = np.empty_like(test.pixels)
    for start in range(0, len(test), _CHUNK):
        part = slice(start, start + _CHUNK)
        images = torch.from_numpy(np.array(test.pixels[part]))
        pixels[part] = rotated_and_scaled(images, angle[part], scale[part]).numpy()
    return Dataset.of(name, dataset.classes, dataset.train, Images.of(pixels, test.labels), dataset.skipped)


def rotated_and_scaled(images: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Each image turned by an angle (as seen: counterclockwise) and magnified by a scale.

    Args:
        images: (N, H, W, C) uint8.
        angle: (N,) in radians.
        scale: (N,) above 0.

    Returns:
        (N, H, W, C) uint8.
    """
    v = resampled(
        images.permute(0, 3, 1, 2).double(), angle, scale
    )  # in fp32, machines would round differently
    return v.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def resampled(u: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The same of images (N, C, H, W) in floating point, without rounding."""
    height, width = u.shape[2:]
    cos, sin, zero = torch.cos(angle) / scale, torch.sin(angle) / scale, torch.zeros_like(angle)
    rows = ((cos, -sin * (height / width), zero), (sin * (width / height), cos, zero))  # rows point down
    affine = torch.stack([torch.stack(row, -1) for row in rows], 1).to(u)
    grid = F.affine_grid(affine, list(u.shape), align_corners=False)
    return F.grid_sample(u, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
