"""Time grids: t_0 < t_1 < ... < t_n, the nodes of the states or of the controls.

A grid is a frozen, hashable value of Python floats: whatever depends on it is known before the first forward
pass. A `Step` is one interval of it, as an integrator sees it.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resode.errors import InputError, nearest


@dataclass(frozen=True)
class Step:
    """One step of a time grid: from t to t + h.

    Args:
        t: the start of the step.
        end: the end of the step, the next node.
        before: the length of the previous step (default: None, the first step).
    """

    t: float
    end: float
    before: float | None = None

    @property
    def h(self) -> float:
        """The length of the step."""
        return self.end - self.t


@dataclass(frozen=True, repr=False)
class TimeGrid:
    """Nodes t_0 < ... < t_n with the steps h_k = t_{k+1} - t_k.

    Args:
        nodes: finite and strictly increasing; at least one (a state grid needs two).

    Raises:
        InputError: no nodes, or nodes that do not increase or are not finite.
    """

    nodes: tuple[float, ...]

    def __post_init__(self) -> None:
        try:
            if any(isinstance(t, str | bool) for t in self.nodes):
                raise TypeError
            nodes = tuple(float(t) for t in self.nodes)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"a time grid of {self.nodes!r}: a list of numbers is needed") from None
        object.__setattr__(self, "nodes", nodes)
        if not nodes:
            raise InputError("a time grid needs at least one node")
        if not all(map(math.isfinite, nodes)):
            raise InputError(f"a time grid of {_listed(nodes)}: its nodes have to be finite")
        for before, after in itertools.pairwise(nodes):
            if before >= after:
                raise InputError(
                    f"a time grid has to increase: {before:g} is followed by {after:g} in {_listed(nodes)}"
                )

    @classmethod
    def uniform(cls, steps: int, end: float | None = None, start: float = 0.0) -> "TimeGrid":
        """`steps` equal steps from `start` to `end` (default: steps of length 1)."""
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise InputError(f"a time grid of {steps!r} steps: a positive integer is needed")
        for name, value in (("start", start), ("end", end if end is not None else 0.0)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
                raise InputError(f"a time grid with {name} {value!r}: a finite number is needed")
        end = start + steps if end is None else end
        return cls((*(start + (end - start) * k / steps for k in range(steps)), end))

    @classmethod
    def of(cls, value: Any) -> "TimeGrid":
        """Make a grid from nodes `[0, 1, 2]`, `{"steps": 8, "end": 4.0}`, or a number of unit steps.

        Raises:
            InputError: anything else.
        """
        if isinstance(value, TimeGrid):
            return value
        if hasattr(value, "tolist"):  # an array, a tensor
            value = value.tolist()
        if isinstance(value, int) and not isinstance(value, bool):
            return cls.uniform(value)
        if isinstance(value, Mapping):
            known = ("steps", "end", "start")
            for key in value:
                if key not in known:
                    raise InputError(
                        f"a time grid has no '{key}'{nearest(str(key), known)} (steps, end, start)"
                    )
            if "steps" not in value:
                raise InputError("a time grid needs 'steps', e.g. {steps: 8, end: 4.0}, or a list of nodes")
            return cls.uniform(**value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return cls(tuple(value))
        raise InputError(f"a time grid of {value!r}: give nodes [0, 1, 2], or {{steps: 8, end: 4.0}}")

    @property
    def intervals(self) -> tuple[float, ...]:
        """The steps h_k."""
        return tuple(b - a for a, b in zip(self.nodes, self.nodes[1:], strict=False))

    @property
    def steps(self) -> int:
        """The number n of steps."""
        return len(self.nodes) - 1

    def step(self, k: int) -> Step:
        """Step k, counted from 0."""
        t, end = self.nodes[k], self.nodes[k + 1]
        return Step(t, end, t - self.nodes[k - 1] if k else None)

    @property
    def start(self) -> float:
        """t_0."""
        return self.nodes[0]

    @property
    def end(self) -> float:
        """t_n."""
        return self.nodes[-1]

    @property
    def is_uniform(self) -> bool:
        """Whether all steps are equal, up to the rounding of the nodes."""
        h = self.intervals
        return not h or max(h) - min(h) <= self._rounding

    @property
    def _rounding(self) -> float:
        """The largest difference between two times that are taken for the same node."""
        return 8 * math.ulp(max(abs(self.start), abs(self.end)))

    def snap(self, t: float) -> float:
        """The node that equals t up to rounding; t itself if there is none."""
        nearest = min(self.nodes, key=lambda node: abs(node - t))
        return nearest if abs(nearest - t) <= self._rounding else t

    def refine(self, factor: int = 2) -> "TimeGrid":
        """The grid with every step divided into `factor` equal ones."""
        if type(factor) is not int or factor < 1:
            raise InputError(f"refining a time grid {factor} times: a positive integer is needed")
        inner = (
            a + (b - a) * j / factor
            for a, b in zip(self.nodes, self.nodes[1:], strict=False)
            for j in range(factor)
        )
        return TimeGrid((*inner, self.end))

    def coarsen(self, factor: int = 2) -> "TimeGrid":
        """The grid of every `factor`-th node; the number of steps must be a multiple of `factor`."""
        if type(factor) is not int or factor < 1:
            raise InputError(f"joining {factor!r} steps of a time grid: a positive integer is needed")
        if self.steps % factor:
            number = "one step" if self.steps == 1 else f"{self.steps} steps"
            raise InputError(f"{number} cannot be joined {factor} at a time")
        return TimeGrid(self.nodes[::factor])

    def interval_of(self, t: float) -> int:
        """The k with t_k <= t < t_{k+1}; 0 before the grid, n - 1 from its end on."""
        return min(max(bisect_right(self.nodes, t) - 1, 0), max(self.steps - 1, 0))

    def to_data(self) -> list[float] | dict[str, float]:
        """Plain data that `of` turns into the same grid."""
        if self.steps > 4 and self == TimeGrid.uniform(self.steps, self.end, self.start):
            origin = {"start": self.start} if self.start else {}
            return {"steps": self.steps, "end": self.end, **origin}
        return list(self.nodes)

    def __repr__(self) -> str:
        data = self.to_data()
        if isinstance(data, dict):
            return f"TimeGrid.uniform({', '.join(f'{name}={_exact(t)}' for name, t in data.items())})"
        shown = [_exact(t) for t in self.nodes]
        if len(shown) > 12:
            shown[4:-2] = ["..."]
        return f"TimeGrid([{', '.join(shown)}]{f', {self.steps} steps' * ('...' in shown)})"

    def __str__(self) -> str:
        if self.steps > 4 and self.is_uniform:
            return f"{self.start:g} to {self.end:g} in {self.steps} steps of {self.intervals[0]:g}"
        return _listed(self.nodes)


def _exact(t: float) -> str:
    return repr(t).removesuffix(".0")


def _listed(nodes: Iterable[float]) -> str:
    return "[" + ", ".join(f"{t:g}" for t in nodes) + "]"
