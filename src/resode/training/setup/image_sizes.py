"""Image sizes: small images while the network learns coarse features, whole ones at the end.

A step costs in proportion to its pixels, and a convolutional network takes any size (progressive resizing:
Howard et al., DAWNBench 2018; Tan & Le 2021, arXiv:2104.00298). Augmented images are scaled bilinearly with
antialiasing.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from resode.memory import Shape
from resode.training.recipe.data import Sizing


def size_at(sizes: Sequence[Sizing], iteration: int, iterations: int) -> int | None:
    """The side of the images of an iteration; None: whole, as they are in the last iteration at least."""
    ends = _ends(sizes, iterations)
    return next((sizing.size for sizing, end in zip(sizes, ends, strict=True) if iteration < end), None)


def phases(sizes: Sequence[Sizing], iterations: int) -> list[tuple[int, int]]:
    """(first iteration, number of iterations) of each phase: one per size, then whole images."""
    ends = _ends(sizes, iterations)
    return [(a, b - a) for a, b in zip([0, *ends], [*ends, iterations], strict=True) if b > a]


def _ends(sizes: Sequence[Sizing], iterations: int) -> list[int]:
    return [min(round(sizing.until * iterations), iterations - 1) for sizing in sizes]


def resized_shape(shape: Shape, size: int | None) -> Shape:
    """The shape (C, H, W) of an image whose shorter side becomes `size` (None: unchanged)."""
    if size is None:
        return shape
    scale = size / min(shape[1:])
    return shape[0], round(shape[1] * scale), round(shape[2] * scale)


def resized(inputs: Tensor, size: int | None) -> Tensor:
    """Images (N, C, H, W) whose shorter side is `size` (None: unchanged), in their own memory format.

    Both axes are scaled by a matrix product: for (128, 3, 32, 32) to 16 and 24 on a CPU thread,
    `F.interpolate(antialias=True)` takes 2.5 and 1.9 times as long, and it has no bf16.
    """
    channels, height, width = inputs.shape[1:]
    shape = resized_shape((channels, height, width), size)
    if shape == (channels, height, width):
        return inputs
    along = _scaling(height, shape[1], inputs.device)
    across = _scaling(width, shape[2], inputs.device, channels)
    u = inputs.permute(0, 2, 3, 1).float()
    u = torch.bmm(along.expand(len(u), -1, -1), u.reshape(len(u), height, width * channels))
    u = u.view(-1, width * channels) @ across.T
    u = u.view(-1, shape[1], shape[2], channels).permute(0, 3, 1, 2).to(inputs.dtype)
    last = inputs.is_contiguous(memory_format=torch.channels_last)
    return u.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@functools.cache
def _scaling(size: int, smaller: int, device: torch.device, channels: int = 1) -> Tensor:
    """The matrix (smaller channels, size channels) that scales a line of pixels, kept on the device."""
    line = torch.eye(size)[None, None]
    scaled = F.interpolate(line, [smaller, size], mode="bilinear", align_corners=False, antialias=True)
    return torch.kron(scaled[0, 0], torch.eye(channels)).to(device)
