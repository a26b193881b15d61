"""Random rotation and scaling of test images, to measure robustness to affine changes.

    v(x) = u(R(-a) x / s),        x = 0 at the centre,        a ~ U(-A, A),  log s ~ U(log s_min, log s_max)

with bilinear interpolation (which blurs a little) and reflection at the boundary. Angle and scale of an image
are a function of the seed and of its rank by content hash, so that every network sees the same images,
whatever their order.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from resode import randomness
from resode.data.images import Dataset, Images
from resode.errors import InputError

_CHUNK = 1024  # images transformed at a time


def random_affine(
    dataset: Dataset,
    name: str,
    *,
    degrees: float = 30.0,
    scales: tuple[float, float] = (0.7, 1.3),
    seed: int = 0,
) -> Dataset:
    """Rotate and scale each test image at random; the training images are unchanged.

    Args:
        dataset: a data set with a test split.
        name: name of the result.
        degrees: largest angle A, in either direction.
        scales: (s_min, s_max); above 1 the object becomes larger.
        seed: seed of the angles and scales.

    Raises:
        InputError: no test images, a negative angle, or scales that are not an interval above 0.
    """
    if dataset.test is None:
        raise InputError(f"{dataset.name} has no test images to rotate and scale")
    if not (0 <= degrees < math.inf and 0 < scales[0] <= scales[1] < math.inf):
        raise InputError(
            f"degrees {degrees!r}, scales {scales!r}: give degrees of at least 0 and an interval above 0"
        )
    test = dataset.test
    rank = torch.empty(len(test), dtype=torch.int64)
    rank[torch.from_numpy(np.argsort(test.digests, kind="stable"))] = torch.arange(len(test))
    angle = (2 * randomness.uniform(seed, "angle", 0, rank) - 1) * math.radians(degrees)
    low, high = map(math.log, scales)
    scale = torch.exp(low + (high - low) * randomness.uniform(seed, "scale", 0, rank))
    pixels = np.empty_like(test.pixels)
    for start in range(0, len(test), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        images = torch.from_numpy(np.array(test.pixels[chunk]))
        pixels[chunk] = affine_uint8(images, angle[chunk], scale[chunk]).numpy()
    return Dataset.of(name, dataset.classes, dataset.train, Images.of(pixels, test.labels), dataset.skipped)


def affine_uint8(images: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rotate each image counterclockwise (as displayed) and scale it.

    Args:
        images: (N, H, W, C) uint8.
        angle: (N,) in radians.
        scale: (N,) above 0.

    Returns:
        (N, H, W, C) uint8.
    """
    # in float64, as float32 would round differently on other processors
    v = affine(images.permute(0, 3, 1, 2).double(), angle, scale)
    return v.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def affine(u: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rotate and scale floating-point images u (N, C, H, W), as `affine_uint8` but without rounding."""
    height, width = u.shape[2:]
    cos, sin, zero = torch.cos(angle) / scale, torch.sin(angle) / scale, torch.zeros_like(angle)
    rows = ((cos, -sin * (height / width), zero), (sin * (width / height), cos, zero))  # y points down
    affine = torch.stack([torch.stack(row, -1) for row in rows], 1).to(u)
    grid = F.affine_grid(affine, list(u.shape), align_corners=False)
    return F.grid_sample(u, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
