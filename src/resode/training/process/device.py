"""Where a network computes: its device, and how it lies in memory there."""

from typing import Literal, TypeVar

import torch
from torch import nn

from resode.errors import InputError, ResourceError

Precision = Literal["fp32", "bf16"]
M = TypeVar("M", bound=nn.Module)


def choose_device(name: str) -> torch.device:
    """`auto`: the GPU where there is one, else the CPU.

    Raises:
        InputError: no such device name.
        ResourceError: a GPU is asked for and none is there.
    """
    forbid_tf32()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device '{name}' (auto, cpu, cuda, cuda:1, ...)") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' is not supported (auto, cpu, cuda, cuda:1, ...)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ResourceError(f"device '{name}': {count} CUDA devices are here; try --device cpu")
    return device


def forbid_tf32() -> None:
    """Make fp32 mean fp32: by default a GPU's convolutions round their inputs to 10 bits of mantissa."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def place(module: M, device: torch.device) -> M:
    """Put a module on the device, its convolution weights channels-last."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
