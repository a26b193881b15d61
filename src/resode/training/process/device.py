"""The device that a network computes on, and its memory format there."""

from typing import Literal, TypeVar

import torch
from torch import nn

from resode.errors import InputError, ResourceError

Precision = Literal["fp32", "bf16"]
M = TypeVar("M", bound=nn.Module)


def choose_device(name: str) -> torch.device:
    """The torch device of a name; `auto` is the GPU if there is one, else the CPU.

    Also turns TF32 off, so that fp32 has the same meaning on every device.

    Raises:
        InputError: the name is not that of a CPU or a CUDA device.
        ResourceError: this machine has no such GPU.
    """
    forbid_tf32()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"unknown device '{name}' (auto, cpu, cuda, cuda:1, ...)") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' is not supported (auto, cpu, cuda, cuda:1, ...)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ResourceError(f"device '{name}': this machine has {count} CUDA devices; try --device cpu")
    return device


def forbid_tf32() -> None:
    """Turn TF32 off: by default a GPU's fp32 convolutions round their inputs to 10 bits of mantissa."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def place(module: M, device: torch.device) -> M:
    """Move a module to the device, with its convolution weights in channels-last memory format."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
