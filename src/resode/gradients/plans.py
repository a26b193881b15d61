"""Plans of recomputation: which steps of a chain are done again, and in which segments.

A plan lists the lengths of segments; of each the carry before it alone is kept. A plan in the place of a
number says how that segment is done when it is done again. The last number is of the steps that are kept
whole, and may be 0. Of [[3, 2], 4, 5] the first three steps are done twice more, the next six once more, the
last five never.

To keep n steps by segments of m takes n/m carries and the operations of m steps: with m = sqrt(n) both grow
as sqrt(n) (Chen et al. 2016, arXiv:1604.06174), with l levels as the (l + 1)-th root (Griewank & Walther
2000). Steps differ in bytes, and the carries behind a segment are gone when it is done again, so that early
segments may be longer: `fitted` finds the plan for a number of bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from resode import memory
from resode.errors import InputError
from resode.memory import Held, StepBytes

Plan = tuple["int | Plan", ...]


def checked(plan: Any) -> Plan:
    """A plan from lists.

    Raises:
        InputError: it is none; says what one is.
    """
    if isinstance(plan, list | tuple) and plan and _whole(plan[-1], 0):
        parts = (part if _whole(part, 1) else checked(part) for part in plan[:-1])
        return *parts, plan[-1]
    raise InputError(
        f"a plan lists the lengths of segments that are done again, then the number of steps that are kept "
        f"([4, 4, 2]); a plan may stand for a number ([[2, 2], 4, 2]): {plan!r} is none"
    )


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def length(plan: "int | Plan") -> int:
    """The number of steps in a plan."""
    return plan if isinstance(plan, int) else sum(map(length, plan))


def uniform(steps: int, every: int, levels: int = 1) -> Plan:
    """All steps in segments of `every` steps; with two levels in segments of every^2 steps, and so on."""
    size: int = every**levels
    sizes = [min(size, steps - first) for first in range(0, steps, size)]
    return *(_divided(s, every, levels - 1) for s in sizes), 0


def _divided(size: int, every: int, levels: int) -> "int | Plan":
    """A segment in segments, of which the last need not be done again once more."""
    if levels == 0 or size <= every:
        return size
    plan = uniform(size, every, levels)
    return plan[:-1] if levels == 1 else plan


def root(steps: int, levels: int = 1) -> int:
    """Of how many steps a segment has to be: the (levels + 1)-th root of their number."""
    return max(1, round(math.pow(steps, 1 / (levels + 1))))


def done_again(plan: Plan) -> int:
    """How many steps are done again, each as often as it is."""
    return sum(part if isinstance(part, int) else length(part) + done_again(part) for part in plan[:-1])


def held(plan: Plan, steps: Sequence[StepBytes]) -> Held:
    """The bytes of a chain that is done again by a plan."""
    kept = peak = first = 0
    for part in plan[:-1]:
        segment = _alone(steps[first : first + length(part)])
        inner = memory.span(segment) if isinstance(part, int) else held(part, segment).peak
        kept += steps[first].carry
        peak = max(peak, kept + inner)
        first += length(part)
    rest = steps[first:]
    return Held(kept + sum(step.saved for step in rest), max(peak, kept + memory.span(rest)))


def _alone(segment: Sequence[StepBytes]) -> list[StepBytes]:
    """Steps that are done again: what the carry before them holds is kept anyway."""
    first = segment[0]
    return [replace(first, carry=0, saved=first.saved - first.repeated, repeated=0), *segment[1:]]


# ---------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Item:
    """A step of chain number `chain`, or (None) a part of a network that cannot be done again."""

    step: StepBytes
    chain: int | None


def fitted(items: Sequence[Item], room: int, levels: int) -> list[Plan] | None:
    """A plan of at most so many levels for each chain, so that all stays within `room` bytes.

    As little as can be is done again. None where nothing fits.
    """
    found = _fitted(items, room, levels)
    if found is None:
        return None
    plans = []
    for chain, group in groupby(enumerate(items), lambda item: item[1].chain):
        if chain is not None:
            own = [at for at, _ in group]
            plans.append(_plan([part for at, part in found if at in own], len(own)))
    return plans


def smallest(items: Sequence[Item], levels: int) -> int:
    """The fewest bytes, to half a percent, that plans of so many levels need."""
    low, high = 0, memory.span([item.step for item in items])
    while high - low > max(high // 200, 1):
        middle = (low + high) // 2
        low, high = (low, middle) if _possible(items, middle, levels) else (middle, high)
    return high


_Segments = list[tuple[int, "int | Plan"]]  # the first item of each, and how it is done again


def _fitted(items: Sequence[Item], room: int, levels: int) -> _Segments | None:
    """A prefix in segments, each planned with one level less; what follows is planned so as a whole."""
    if levels == 0:
        return [] if memory.span([item.step for item in items]) <= room else None

    def attempt(until: int) -> _Segments | None:
        prefix = _prefix(items, until, room, levels)
        if prefix is None:
            return None
        segments, kept = prefix
        rest = _fitted(items[until:], room - kept, levels - 1)
        return None if rest is None else [*segments, *((until + at, part) for at, part in rest)]

    shortest = _first(len(items), lambda until: attempt(until) is not None)
    return attempt(0 if shortest is None else shortest)


def _possible(items: Sequence[Item], room: int, levels: int) -> bool:
    if levels == 0:
        return memory.span([item.step for item in items]) <= room
    return _prefix(items, len(items), room, levels) is not None or _possible(items, room, levels - 1)


def _prefix(items: Sequence[Item], until: int, room: int, levels: int) -> tuple[_Segments, int] | None:
    """The items before `until` in segments, each as long as can be, and the bytes that they keep."""
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
        rest = [Item(_alone([step])[0], chain), *items[at + 1 : until]]
        size = _longest(rest, room - kept, levels - 1)
        if size == 0:
            return None
        inner = _fitted(rest[:size], room - kept, levels - 1)
        assert inner is not None
        parts = [part for _, part in inner]
        segments.append((at, _plan(parts, size) if parts else size))
        at += size
    return segments, kept


def _longest(items: Sequence[Item], room: int, levels: int) -> int:
    """The number of first items, all of one chain, that a plan of so many levels fits."""
    limit = next((i for i, item in enumerate(items) if item.chain != items[0].chain), len(items))
    size = 1
    while size < limit and _possible(items[:size], room, levels):
        size = min(2 * size, limit)
    beyond = _first(size - 1, lambda n: not _possible(items[: n + 1], room, levels))
    return size if beyond is None else beyond


def _first(last: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number up to `last` from which on a statement holds; None where it does not at `last`."""
    if not holds(last):
        return None
    low, high = -1, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _plan(parts: Sequence["int | Plan"], steps: int) -> Plan:
    return *parts, steps - sum(map(length, parts))
