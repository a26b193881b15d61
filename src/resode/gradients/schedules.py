"""Recomputation schedules: which steps of a chain are recomputed, and in which segments.

A schedule lists the lengths of segments; only the carry before each segment is kept. A schedule in the place
of a number says how that segment runs when it is recomputed. The last number counts the steps whose
operations are kept, and may be 0. With [[3, 2], 4, 5] the first three steps are recomputed twice, the next
six once, the last five never.

Keeping n steps in segments of m takes n/m carries and the operations of m steps: with m = sqrt(n) both grow
as sqrt(n) (Chen et al. 2016, arXiv:1604.06174), with l levels as the (l + 1)-th root (Griewank & Walther
2000). Steps differ in bytes, and the carries of later segments are gone when a segment is recomputed, so
early segments may be longer: `fit` finds the schedule for a number of bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from resode import memory
from resode.errors import InputError
from resode.memory import Footprint, StepBytes

Schedule = tuple["int | Schedule", ...]


def parse(value: Any) -> Schedule:
    """A schedule from nested lists.

    Raises:
        InputError: a malformed schedule; the message shows a valid one.
    """
    if isinstance(value, list | tuple) and value and _whole(value[-1], 0):
        segments = (segment if _whole(segment, 1) else parse(segment) for segment in value[:-1])
        return *segments, value[-1]
    raise InputError(
        f"a plan lists the lengths of recomputed segments, then the number of steps that are kept "
        f"([4, 4, 2]); a plan may replace a length ([[2, 2], 4, 2]); {value!r} is not a plan"
    )


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def length(schedule: "int | Schedule") -> int:
    """The number of steps in a schedule."""
    return schedule if isinstance(schedule, int) else sum(map(length, schedule))


def uniform(steps: int, every: int, levels: int = 1) -> Schedule:
    """All steps in segments of `every` steps; with two levels in segments of every^2 steps, and so on."""
    size: int = every**levels
    sizes = [min(size, steps - first) for first in range(0, steps, size)]
    return *(_divided(s, every, levels - 1) for s in sizes), 0


def _divided(size: int, every: int, levels: int) -> "int | Schedule":
    """A segment divided into segments, the last of which need not be recomputed once more."""
    if levels == 0 or size <= every:
        return size
    schedule = uniform(size, every, levels)
    return schedule[:-1] if levels == 1 else schedule


def segment_length(steps: int, levels: int = 1) -> int:
    """The default length of a segment: the (levels + 1)-th root of the number of steps."""
    return max(1, round(math.pow(steps, 1 / (levels + 1))))


def recomputed_steps(schedule: Schedule) -> int:
    """The number of steps that are recomputed, each counted as often as it is."""
    return sum(
        segment if isinstance(segment, int) else length(segment) + recomputed_steps(segment)
        for segment in schedule[:-1]
    )


def footprint(schedule: Schedule, steps: Sequence[StepBytes]) -> Footprint:
    """The bytes of a chain that runs by a schedule."""
    kept = peak = first = 0
    for segment in schedule[:-1]:
        own = _recomputed(steps[first : first + length(segment)])
        inner = memory.span(own) if isinstance(segment, int) else footprint(segment, own).peak
        kept += steps[first].carry
        peak = max(peak, kept + inner)
        first += length(segment)
    rest = steps[first:]
    return Footprint(kept + sum(step.saved for step in rest), max(peak, kept + memory.span(rest)))


def _recomputed(segment: Sequence[StepBytes]) -> list[StepBytes]:
    """The steps of a segment while it is recomputed: the carry before it is kept already."""
    first = segment[0]
    return [replace(first, carry=0, saved=first.saved - first.repeated, repeated=0), *segment[1:]]


# ---------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Item:
    """A step of chain number `chain`, or (None) a section of a network that cannot be recomputed."""

    step: StepBytes
    chain: int | None


def fit(items: Sequence[Item], room: int, levels: int) -> list[Schedule] | None:
    """A schedule with at most `levels` levels for each chain, so that all stays within `room` bytes.

    As few steps as possible are recomputed. None if nothing fits.
    """
    found = _fit(items, room, levels)
    if found is None:
        return None
    schedules = []
    for chain, group in groupby(enumerate(items), lambda item: item[1].chain):
        if chain is not None:
            own = [at for at, _ in group]
            schedules.append(_completed([segment for at, segment in found if at in own], len(own)))
    return schedules


def minimum_bytes(items: Sequence[Item], levels: int) -> int:
    """The fewest bytes, to half a percent, that schedules with so many levels need."""
    low, high = 0, memory.span([item.step for item in items])
    while high - low > max(high // 200, 1):
        middle = (low + high) // 2
        low, high = (low, middle) if _possible(items, middle, levels) else (middle, high)
    return high


_Segments = list[tuple[int, "int | Schedule"]]  # the first item of each segment, and its length or schedule


def _fit(items: Sequence[Item], room: int, levels: int) -> _Segments | None:
    """Segments of a prefix, each scheduled with one level less; then the rest, with one level less."""
    if levels == 0:
        return [] if memory.span([item.step for item in items]) <= room else None

    def attempt(until: int) -> _Segments | None:
        prefix = _prefix(items, until, room, levels)
        if prefix is None:
            return None
        segments, kept = prefix
        rest = _fit(items[until:], room - kept, levels - 1)
        return None if rest is None else [*segments, *((until + at, segment) for at, segment in rest)]

    shortest = _first(len(items), lambda until: attempt(until) is not None)
    return attempt(0 if shortest is None else shortest)


def _possible(items: Sequence[Item], room: int, levels: int) -> bool:
    if levels == 0:
        return memory.span([item.step for item in items]) <= room
    return _prefix(items, len(items), room, levels) is not None or _possible(items, room, levels - 1)


def _prefix(items: Sequence[Item], until: int, room: int, levels: int) -> tuple[_Segments, int] | None:
    """The items before `until` in segments of the greatest possible length, and the bytes that they keep."""
    segments: _Segments = []
    kept = at = 0
    while at < until:
        step, chain = items[at].step, items[at].chain
        if chain is None:
            kept, at = kept + step.saved, at + 1
            if kept + step.flowing > room:
                return None
            continue
        kept += step.carry
        rest = [Item(_recomputed([step])[0], chain), *items[at + 1 : until]]
        size = _longest(rest, room - kept, levels - 1)
        if size == 0:
            return None
        inner = _fit(rest[:size], room - kept, levels - 1)
        assert inner is not None
        lengths = [segment for _, segment in inner]
        segments.append((at, _completed(lengths, size) if lengths else size))
        at += size
    return segments, kept


def _longest(items: Sequence[Item], room: int, levels: int) -> int:
    """The number of leading items, all of one chain, that a schedule with so many levels fits."""
    limit = next((i for i, item in enumerate(items) if item.chain != items[0].chain), len(items))
    size = 1
    while size < limit and _possible(items[:size], room, levels):
        size = min(2 * size, limit)
    beyond = _first(size - 1, lambda n: not _possible(items[: n + 1], room, levels))
    return size if beyond is None else beyond


def _first(last: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number up to `last` from which on a statement holds; None if it does not at `last`."""
    if not holds(last):
        return None
    low, high = -1, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _completed(segments: Sequence["int | Schedule"], steps: int) -> Schedule:
    """The schedule of these segments that keeps the remaining steps."""
    return *segments, steps - sum(map(length, segments))
