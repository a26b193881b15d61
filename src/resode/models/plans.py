"""Plans: the shapes of a network's units, stage by stage, before there is a network.

A stage is a number of units at one resolution. Between two stages the channels change and the image is
halved; the plan says which convolution of which unit does it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What a unit does to the shape: channels in, between its convolutions and out.

    `strides` belong to its first and its second convolution.
    """

    inputs: int
    middle: int
    outputs: int
    strides: tuple[int, int] = (1, 1)

    @property
    def stride(self) -> int:
        """The stride of the whole unit, which its shortcut has to match."""
        return self.strides[0] * self.strides[1]


Plan = tuple[tuple[Shape, ...], ...]
Planner = Callable[[Sequence[int], Sequence[int]], Plan]  # widths and numbers of units, a stage each


def stride_first(widths: Sequence[int], counts: Sequence[int]) -> Plan:
    """The first convolution of a stage widens, and strides in all stages but the first (He et al. 2016)."""
    inputs = (widths[0], *widths[:-1])
    strides = (1,) + (2,) * (len(widths) - 1)
    return tuple(
        (Shape(before, width, width, (stride, 1)), *[Shape(width, width, width)] * (count - 1))
        for before, width, stride, count in zip(inputs, widths, strides, counts, strict=True)
    )


def stride_last(widths: Sequence[int], counts: Sequence[int]) -> Plan:
    """The last convolution of a stage widens and strides, in all stages but the last."""
    outputs = (*widths[1:], widths[-1])
    strides = (2,) * (len(widths) - 1) + (1,)
    return tuple(
        (*[Shape(width, width, width)] * (count - 1), Shape(width, width, after, (1, stride)))
        for width, after, stride, count in zip(widths, outputs, strides, counts, strict=True)
    )


def bottlenecks(widths: Sequence[int], counts: Sequence[int]) -> Plan:
    """Units of width w give 4w channels; the second convolution strides in all stages but the first."""
    inputs = (widths[0], *(4 * width for width in widths[:-1]))
    strides = (1,) + (2,) * (len(widths) - 1)
    return tuple(
        (Shape(before, width, 4 * width, (1, stride)), *[Shape(4 * width, width, 4 * width)] * (count - 1))
        for before, width, stride, count in zip(inputs, widths, strides, counts, strict=True)
    )


def refuse_sizes(widths: Any, stages: int, what: str = "widths", /, **numbers: Any) -> list[str]:
    """A line for each size that cannot be: `stages` widths and all `numbers` are positive integers.

    Args:
        widths: the list.
        stages: its length.
        what: its name.
        numbers: single ones, by name.
    """
    mistakes = []
    if not isinstance(widths, Sequence) or len(widths) != stages or not all(map(_positive, widths)):
        mistakes.append(f"{what} {widths!r}: a list of {stages} positive integers is needed")
    for name, value in numbers.items():
        if not _positive(value):
            mistakes.append(f"{name} {value!r}: a positive integer is needed")
    return mistakes


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
