"""Sizes: smaller images while a network learns the coarse, whole ones at the end.

A step costs what its pixels cost, and a network of convolutions takes any size (progressive resizing: Howard
et al., DAWNBench 2018; Tan & Le 2021, arXiv:2104.00298). Augmented images are scaled bilinearly, antialiased.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from resode.memory import Shape
from resode.training.experiment import Sizing


def size_at(sizes: Sequence[Sizing], iteration: int, iterations: int) -> int | None:
    """The side of the images of an iteration; None where they are whole, as they are in the last at least."""
    ends = _ends(sizes, iterations)
    return next((part.size for part, end in zip(sizes, ends, strict=True) if iteration < end), None)


def parts(sizes: Sequence[Sizing], iterations: int) -> list[tuple[int, int]]:
    """(first iteration, how many) for each part of a training: one a size, and the whole images."""
    ends = _ends(sizes, iterations)
    return [(a, b - a) for a, b in zip([0, *ends], [*ends, iterations], strict=True) if b > a]


def _ends(sizes: Sequence[Sizing], iterations: int) -> list[int]:
    return [min(round(part.until * iterations), iterations - 1) for part in sizes]


def resized_shape(shape: Shape, size: int | None) -> Shape:
    """The shape (C, H, W) of an image whose shorter side becomes `size`; None leaves it as it is."""
    if size is None:
        return shape
    scale = size / min(shape[1:])
    return shape[0], round(shape[1] * scale), round(shape[2] * scale)


def resized(inputs: Tensor, size: int | None) -> Tensor:
    """Images (N, C, H, W) whose shorter side is `size`, in the memory format that they have."""
    channels, height, width = inputs.shape[1:]
    shape = resized_shape((channels, height, width), size)
    if shape == (channels, height, width):
        return inputs
    u = inputs.float()  # a CPU scales no other numbers with antialiasing
    u = F.interpolate(u, list(shape[1:]), mode="bilinear", align_corners=False, antialias=True)
    return u.to(inputs.dtype)
