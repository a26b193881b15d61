"""A few images at a time through all layers of a trained network, in bf16.

A program is steps between places: what a network's layers make of each image, in memory. Weights and places
are bfloat16, sums single precision. What a step is, `inference.cpp` says; `inference.py` reads a network's
steps.
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
LIGHT = 2_000_000  # weights of a network that stay in the cache between images; more are read for more images
TOGETHER = (2, 8)  # images through a light network, and through a heavier one
ENTRANCE = 4  # channels of the first place
_NUMBERS = ("x", "r", "y", "kernel", "stride", "relu", "every", "before", "taken")


@dataclass(frozen=True)
class Shape:
    """Of one image at a point of the network."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class View:
    """Every so many rows and columns of a place, with channels of zeros before and behind its own."""

    place: int
    shape: Shape
    rows: int = 1
    columns: int = 1
    before: int = 0


@dataclass(frozen=True)
class Step:
    """y = W * x + bias + r, or scale x + bias + r, and its ReLU: not yet made, so that more can be added."""

    x: int
    shape: Shape
    bias: Tensor  # (outputs,), single precision
    weight: Tensor | None = None  # (outputs, inputs, kernel, kernel); None: pointwise
    scale: Tensor | None = None  # (outputs,)
    stride: int = 1
    r: View | None = None
    relu: bool = False

    def times(self, factor: Tensor | float, shift: Tensor | float) -> "Step":
        """The step of factor y + shift, where nothing is added yet."""
        factor = torch.as_tensor(factor, dtype=torch.float32).expand(len(self.bias))
        weight = self.weight * factor[:, None, None, None] if self.weight is not None else None
        scale = self.scale * factor if self.scale is not None else None
        return replace(self, weight=weight, scale=scale, bias=self.bias * factor + shift)


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale")),
    )


@dataclass(frozen=True)
class Mean:
    """Over the pixels of a place: (N, channels)."""

    place: int


@dataclass(frozen=True)
class Logits:
    """W m + bias, the end of a program."""

    mean: Mean
    weight: Tensor
    bias: Tensor | None


class Program:
    """(N, C, H, W) -> logits (N, classes), single precision, for images of one size and any number of them.

    Args:
        logits: what the program ends with.
        steps: each step, and the place that it makes; place 0 is the image.
        shapes: of each place.
    """

    def __init__(self, logits: Logits, steps: Sequence[tuple[Step, int]], shapes: Sequence[Shape]) -> None:
        self._given = (logits, steps, shapes)
        self.logits = logits
        self.image = shapes[0]
        shared, self.places = _share(steps, shapes, logits.mean.place)
        self.last = shared[logits.mean.place]
        self._kept: list[Tensor] = []  # what the pointers point to
        self._steps = (_Step * len(steps))(*[self._written(step, y, shared, shapes) for step, y in steps])
        numbers = [n for shape in self.places for n in (shape.channels, shape.height, shape.width)]
        self._shapes = (ctypes.c_int64 * len(numbers))(*numbers)
        weights = sum(step.weight.numel() for step, _ in steps if step.weight is not None)
        self.together = TOGETHER[weights > LIGHT]

    def __call__(self, x: Tensor) -> Tensor:
        """The logits of images."""
        assert x.shape[1:] == (self.image.channels, self.image.height, self.image.width)
        assert convolution.available(), convolution.NONE
        found = library()
        assert found is not None
        x = x.float().contiguous()
        means = torch.empty(len(x), self.places[self.last].channels)
        sizes = [
            ctypes.c_int64(n) for n in (len(x), x.shape[1], len(self.places), len(self._steps), self.last)
        ]
        pointers = [ctypes.c_void_p(each.data_ptr()) for each in (x, means)]
        found.infer(
            *sizes,
            ctypes.c_int64(self.together),
            self._shapes,
            self._steps,
            *pointers,
            torch.get_num_threads(),
        )
        weight, bias = self.logits.weight, self.logits.bias
        with torch.autocast("cpu", enabled=False):
            return F.linear(means[:, : weight.shape[1]], weight, bias)

    def __reduce__(self) -> Any:
        """A copy is made anew: pointers cannot be copied."""
        return Program, self._given

    def bytes(self) -> int:
        """Of an image in all places."""
        return sum(2 * s.channels * (s.height + 1) * (s.width + 1) for s in self.places)

    def _written(self, step: Step, y: int, shared: Sequence[int], shapes: Sequence[Shape]) -> _Step:
        inputs, outputs = (self.places[shared[place]].channels for place in (step.x, y))
        made = _Step(x=shared[step.x], r=-1, y=shared[y], stride=step.stride, relu=step.relu, every=1)
        made.bias = self._keep(_filled(step.bias, outputs))
        if step.weight is not None:
            made.kernel = step.weight.shape[2]
            made.weight = self._keep(_tiles(step.weight, inputs, outputs))
        if step.scale is not None:
            made.scale = self._keep(_filled(step.scale, outputs))
        if step.r is not None:
            made.r, made.every, made.before = shared[step.r.place], step.r.rows, step.r.before
            made.taken = step.r.before + shapes[step.r.place].channels
        return made

    def _keep(self, values: Tensor) -> int:
        self._kept.append(values)
        return values.data_ptr()


def _share(
    steps: Sequence[tuple[Step, int]], shapes: Sequence[Shape], last: int
) -> tuple[list[int], list[Shape]]:
    """Which memory each place takes, and the shapes of it: what is done with is taken again by its like."""
    until = {last: len(steps)}
    for k, (step, _) in enumerate(steps):
        for place in (step.x, *([step.r.place] if step.r is not None else [])):
            until[place] = max(until.get(place, 0), k)
    taken, memory = [0] * len(shapes), [replace(shapes[0], channels=ENTRANCE)]
    free: list[tuple[int, int]] = []  # place in memory, and the step after which it is free
    for k, (_, y) in enumerate(steps):
        shape = replace(shapes[y], channels=-(-shapes[y].channels // LANES) * LANES)
        found = next((each for each in free if memory[each[0]] == shape and each[1] < k), None)
        if found is None:
            memory.append(shape)
            taken[y] = len(memory) - 1
        else:
            free.remove(found)
            taken[y] = found[0]
        free.append((taken[y], until.get(y, k)))
    return taken, memory


def _tiles(weight: Tensor, inputs: int, outputs: int) -> Tensor:
    """(outputs / 16, kernel, values / 2, 16, 2) bfloat16; values: a row of the kernel, and zeros to 16."""
    kernel = weight.shape[2]
    values = -(-kernel * inputs // LANES) * LANES
    whole = torch.zeros(outputs, kernel, kernel, inputs)
    whole[: weight.shape[0], :, :, : weight.shape[1]] = weight.permute(0, 2, 3, 1)
    rows = F.pad(whole.flatten(2), (0, values - kernel * inputs))  # (outputs, kernel, values)
    rows = rows.view(outputs // LANES, LANES, kernel, values // 2, 2)
    return rows.permute(0, 2, 3, 1, 4).to(torch.bfloat16).contiguous()


def _filled(values: Tensor, size: int) -> Tensor:
    return F.pad(values.float(), (0, size - len(values))).contiguous()
