"""Layouts: channels and strides of the residual units of a network, stage by stage.

A stage is a sequence of units at one resolution. Between two stages the channels change and the image is
halved; the layout says which convolution of which unit does it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class UnitSpec:
    """Channels and strides of a residual unit.

    Args:
        inputs: channels of the input.
        middle: channels between the convolutions.
        outputs: channels of the output.
        strides: of the first and of the second convolution.
    """

    inputs: int
    middle: int
    outputs: int
    strides: tuple[int, int] = (1, 1)

    @property
    def stride(self) -> int:
        """The stride of the whole unit, which its shortcut has to match."""
        return self.strides[0] * self.strides[1]


Layout = tuple[tuple[UnitSpec, ...], ...]  # the units of each stage
LayoutRule = Callable[[Sequence[int], Sequence[int]], Layout]  # from width and number of units of each stage


def stride_first(widths: Sequence[int], counts: Sequence[int]) -> Layout:
    """The first convolution of a stage widens, and strides in all stages but the first (He et al. 2016)."""
    inputs = (widths[0], *widths[:-1])
    strides = (1,) + (2,) * (len(widths) - 1)
    return tuple(
        (UnitSpec(before, width, width, (stride, 1)), *[UnitSpec(width, width, width)] * (count - 1))
        for before, width, stride, count in zip(inputs, widths, strides, counts, strict=True)
    )


def stride_last(widths: Sequence[int], counts: Sequence[int]) -> Layout:
    """The last convolution of a stage widens and strides, in all stages but the last."""
    outputs = (*widths[1:], widths[-1])
    strides = (2,) * (len(widths) - 1) + (1,)
    return tuple(
        (*[UnitSpec(width, width, width)] * (count - 1), UnitSpec(width, width, after, (1, stride)))
        for width, after, stride, count in zip(widths, outputs, strides, counts, strict=True)
    )


def bottlenecks(widths: Sequence[int], counts: Sequence[int]) -> Layout:
    """Units of width w have 4w output channels; the second convolution strides, except in the first stage."""
    inputs = (widths[0], *(4 * width for width in widths[:-1]))
    strides = (1,) + (2,) * (len(widths) - 1)
    return tuple(
        (
            UnitSpec(before, width, 4 * width, (1, stride)),
            *[UnitSpec(4 * width, width, 4 * width)] * (count - 1),
        )
        for before, width, stride, count in zip(inputs, widths, strides, counts, strict=True)
    )


def size_mistakes(widths: Any, stages: int, what: str = "widths", /, **sizes: Any) -> list[str]:
    """Error messages for sizes that are not positive integers; empty if all are valid.

    Args:
        widths: should be a list of `stages` positive integers.
        stages: its length.
        what: its name in the message.
        sizes: single sizes, by name.
    """
    mistakes = []
    if not isinstance(widths, Sequence) or len(widths) != stages or not all(map(_positive, widths)):
        mistakes.append(f"{what} {widths!r}: a list of {stages} positive integers is needed")
    for name, value in sizes.items():
        if not _positive(value):
            mistakes.append(f"{name} {value!r}: a positive integer is needed")
    return mistakes


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
