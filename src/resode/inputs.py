"""What a network takes: checks of images and shapes where a function of resode receives them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resode.errors import InputError

Shape = tuple[int, int, int]


def check_images(module: nn.Module, images: Any, what: str = "images", channels: int | None = None) -> Tensor:
    """Return a batch of inputs if a network can take it.

    Args:
        module: the network.
        images: floating point numbers (N, C, H, W), of the dtype and on the device of the network.
        what: what messages call them.
        channels: C, where it is known.

    Raises:
        InputError: anything else, or no image.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"{what}: a tensor (N, C, H, W) is needed, not {type(images).__name__}")
    if images.ndim != 4 or not len(images):
        raise InputError(f"{what}: a tensor (N, C, H, W) is needed, its shape is {tuple(images.shape)}")
    if channels is not None and images.shape[1] != channels:
        raise InputError(f"{what}: have {images.shape[1]} channels, the network takes {channels}")
    parameter = next(module.parameters(), images)
    if images.dtype != parameter.dtype:
        own, given = (str(t.dtype).removeprefix("torch.") for t in (parameter, images))
        how = "normalise them first" if not images.dtype.is_floating_point else f"images.to(torch.{own})"
        raise InputError(f"{what}: are {given}, the network computes in {own}; {how}")
    if images.device != parameter.device:
        raise InputError(
            f"{what}: are on {images.device}, the network is on {parameter.device}; "
            f"images.to('{parameter.device}')"
        )
    return images


def check_shape(shape: Any, channels: int | None = None) -> Shape:
    """Return the shape (C, H, W) of an image.

    Args:
        shape: what was given.
        channels: C, where it is known.

    Raises:
        InputError: anything but three positive integers, or another number of channels.
    """
    valid = isinstance(shape, Sequence | torch.Size) and not isinstance(shape, str) and len(shape) == 3
    if not valid or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise InputError(f"shape {shape!r}: (channels, height, width) is needed, such as (3, 32, 32)")
    if channels is not None and shape[0] != channels:
        raise InputError(f"shape {shape!r}: has {shape[0]} channels, the network takes {channels}")
    return shape[0], shape[1], shape[2]
