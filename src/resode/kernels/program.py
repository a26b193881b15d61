"""An inference program: a few images at a time through all layers of a trained network, in bf16.

A program is a list of steps between buffers. A buffer holds the activations of a few images at one point of
the network; all of them stay in the processor's cache. Weights and activations are bfloat16, sums single
precision. `inference.cpp` says what a step computes; `inference.py` translates networks.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resode.kernels import convolution
from resode.kernels.library import library

LANES = 16
LIGHT = (
    2_000_000  # weights that stay in the cache between images; more of them are read for more images at once
)
IMAGES_AT_ONCE = (2, 8)  # in a light network, in a heavier one
INPUT_CHANNELS = 4  # of buffer 0
_NUMBERS = ("x", "r", "y", "kernel", "stride", "relu", "r_stride", "r_begin", "r_end")


@dataclass(frozen=True)
class Shape:
    """(C, H, W) of an image at one point of the network."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class View:
    """A buffer read with strides along rows and columns, and zero channels before and behind its own."""

    buffer: int
    shape: Shape
    row_stride: int = 1
    column_stride: int = 1
    zeros_before: int = 0


@dataclass(frozen=True)
class Step:
    """y = W * x + bias + r, or scale x + bias + r, and a ReLU; not stored yet, so that more can be fused."""

    x: int  # buffer
    shape: Shape  # of y
    bias: Tensor  # (outputs,), single precision
    weight: Tensor | None = None  # (outputs, inputs, kernel, kernel); None: pointwise
    scale: Tensor | None = None  # (outputs,)
    stride: int = 1
    r: View | None = None
    relu: bool = False

    def affine(self, factor: Tensor | float, shift: Tensor | float) -> "Step":
        """The step that gives factor y + shift, for a step without r and ReLU."""
        factor = torch.as_tensor(factor, dtype=torch.float32).expand(len(self.bias))
        weight = self.weight * factor[:, None, None, None] if self.weight is not None else None
        scale = self.scale * factor if self.scale is not None else None
        return replace(self, weight=weight, scale=scale, bias=self.bias * factor + shift)


class _Step(ctypes.Structure):
    """`struct Step` of inference.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale")),
    )


@dataclass(frozen=True)
class Mean:
    """The mean over the pixels of a buffer: (N, channels)."""

    buffer: int


@dataclass(frozen=True)
class Logits:
    """W m + bias, the end of a program."""

    mean: Mean
    weight: Tensor
    bias: Tensor | None


class Program:
    """(N, C, H, W) -> logits (N, classes), single precision, for images of one size and any N.

    Args:
        logits: the end of the program.
        steps: each step, and the buffer that it writes; buffer 0 holds the image.
        shapes: of each buffer.
    """

    def __init__(self, logits: Logits, steps: Sequence[tuple[Step, int]], shapes: Sequence[Shape]) -> None:
        self._arguments = (logits, steps, shapes)
        self.logits = logits
        self.image = shapes[0]
        assigned, self.buffers = _share_memory(steps, shapes, logits.mean.buffer)
        self.last = assigned[logits.mean.buffer]
        self._tensors: list[Tensor] = []  # keeps alive what the pointers refer to
        self._steps = (_Step * len(steps))(*[self._c_step(step, y, assigned, shapes) for step, y in steps])
        numbers = [n for shape in self.buffers for n in (shape.channels, shape.height, shape.width)]
        self._shapes = (ctypes.c_int64 * len(numbers))(*numbers)
        weights = sum(step.weight.numel() for step, _ in steps if step.weight is not None)
        self.images_at_once = IMAGES_AT_ONCE[weights > LIGHT]

    def __call__(self, x: Tensor) -> Tensor:
        """The logits of images x (N, C, H, W)."""
        assert x.shape[1:] == (self.image.channels, self.image.height, self.image.width)
        assert convolution.available(), convolution.NO_BF16
        loaded = library()
        assert loaded is not None
        x = x.float().contiguous()
        means = torch.empty(len(x), self.buffers[self.last].channels)
        sizes = (len(x), x.shape[1], len(self.buffers), len(self._steps), self.last, self.images_at_once)
        loaded.infer(
            *map(ctypes.c_int64, sizes),
            self._shapes,
            self._steps,
            *(ctypes.c_void_p(each.data_ptr()) for each in (x, means)),
            torch.get_num_threads(),
        )
        weight, bias = self.logits.weight, self.logits.bias
        with torch.autocast("cpu", enabled=False):
            return F.linear(means[:, : weight.shape[1]], weight, bias)

    def __reduce__(self) -> Any:
        """Rebuild copies from the arguments: pointers cannot be copied."""
        return Program, self._arguments

    def bytes(self) -> int:
        """Bytes of one image in all buffers."""
        return sum(2 * s.channels * (s.height + 1) * (s.width + 1) for s in self.buffers)

    def _c_step(self, step: Step, y: int, assigned: Sequence[int], shapes: Sequence[Shape]) -> _Step:
        inputs, outputs = (self.buffers[assigned[buffer]].channels for buffer in (step.x, y))
        made = _Step(x=assigned[step.x], r=-1, y=assigned[y], stride=step.stride, relu=step.relu, r_stride=1)
        made.bias = self._pointer(_pad_zeros(step.bias, outputs))
        if step.weight is not None:
            made.kernel = step.weight.shape[2]
            made.weight = self._pointer(_tiles(step.weight, inputs, outputs))
        if step.scale is not None:
            made.scale = self._pointer(_pad_zeros(step.scale, outputs))
        if step.r is not None:
            made.r, made.r_stride = assigned[step.r.buffer], step.r.row_stride
            made.r_begin = step.r.zeros_before
            made.r_end = step.r.zeros_before + shapes[step.r.buffer].channels
        return made

    def _pointer(self, values: Tensor) -> int:
        self._tensors.append(values)
        return values.data_ptr()


def _share_memory(
    steps: Sequence[tuple[Step, int]], shapes: Sequence[Shape], last: int
) -> tuple[list[int], list[Shape]]:
    """Reuse the memory of buffers that are no longer read, for later ones of the same shape.

    Returns:
        the memory that each buffer is assigned to, and the shapes of these, channels padded to vectors.
    """
    last_use = {last: len(steps)}
    for k, (step, _) in enumerate(steps):
        for buffer in (step.x, *([step.r.buffer] if step.r is not None else [])):
            last_use[buffer] = max(last_use.get(buffer, 0), k)
    assigned, memory = [0] * len(shapes), [replace(shapes[0], channels=INPUT_CHANNELS)]
    free: list[tuple[int, int]] = []  # memory, and the step after which it is free
    for k, (_, y) in enumerate(steps):
        shape = replace(shapes[y], channels=-(-shapes[y].channels // LANES) * LANES)
        reusable = next((each for each in free if memory[each[0]] == shape and each[1] < k), None)
        if reusable is None:
            memory.append(shape)
            assigned[y] = len(memory) - 1
        else:
            free.remove(reusable)
            assigned[y] = reusable[0]
        free.append((assigned[y], last_use.get(y, k)))
    return assigned, memory


def _tiles(weight: Tensor, inputs: int, outputs: int) -> Tensor:
    """The weight as (outputs / 16, kernel, values / 2, 16, 2) bfloat16.

    Values are those of a row of the kernel, with zeros up to a multiple of 16.
    """
    kernel = weight.shape[2]
    values = -(-kernel * inputs // LANES) * LANES
    whole = torch.zeros(outputs, kernel, kernel, inputs)
    whole[: weight.shape[0], :, :, : weight.shape[1]] = weight.permute(0, 2, 3, 1)
    rows = F.pad(whole.flatten(2), (0, values - kernel * inputs))  # (outputs, kernel, values)
    rows = rows.view(outputs // LANES, LANES, kernel, values // 2, 2)
    return rows.permute(0, 2, 3, 1, 4).to(torch.bfloat16).contiguous()


def _pad_zeros(values: Tensor, size: int) -> Tensor:
    return F.pad(values.float(), (0, size - len(values))).contiguous()
