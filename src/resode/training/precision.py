"""Precision and device: what `auto` means is measured once, written into the run, and obeyed by resume."""

import time
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


def choose_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> tuple[Precision, str]:
    """The training precision, and why.

    On a CPU bf16 pays only with matrix units for it, so a small convolution block is timed in both: bf16 is
    taken where it is at least 10 % faster.
    """
    if name != "auto":
        return name, "as asked"
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "this GPU computes in bf16") if supported else ("fp32", "this GPU has no bf16")
    full, half = _block_seconds(False), _block_seconds(True)
    reason = f"a convolution block takes {1e3 * full:.1f} ms in fp32, {1e3 * half:.1f} ms in bf16"
    return ("bf16" if half < 0.9 * full else "fp32"), reason


def place(module: M, device: torch.device) -> M:
    """Put a module on the device, its convolution weights channels-last."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _block_seconds(half: bool, repeats: int = 5) -> float:
    """The least time of a training step of one 3x3 convolution with BatchNorm and ReLU, on the CPU."""
    block: nn.Module = nn.Sequential(
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
    )
    block = place(block, torch.device("cpu"))
    images = torch.ones(32, 32, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    times = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = block(images).sum()
        loss.backward()
        times.append(time.perf_counter() - begin)
    return min(times[2:])
