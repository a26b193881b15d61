"""Recomputation schedules, against a machine that runs them and against all schedules of a short chain."""

import random
from itertools import accumulate, combinations, pairwise

import pytest

from resode import memory
from resode.errors import InputError
from resode.gradients import Checkpointed, schedules
from resode.gradients.schedules import Item
from resode.memory import StepBytes


def chain(steps, seed=0, carry=None):
    """Steps of generic sizes; with one size of carry, which each step keeps as well, as networks do."""
    draw = random.Random(seed)
    made = []
    for _ in range(steps):
        size = carry or draw.randint(5, 15)
        repeated = size if carry or draw.random() < 0.5 else 0
        made.append(StepBytes(size, repeated + draw.randint(10, 60), repeated, size, draw.randint(0, 20)))
    return made


class Machine:
    """Runs a schedule and records what is alive: carries and the operations of steps, by name."""

    def __init__(self, steps):
        self.steps, self.alive, self.peak, self.evaluations = steps, {}, 0, 0

    def run(self, plan):
        self.backward(self.forward(plan, 0))
        assert not self.alive
        return self.peak

    def forward(self, plan, first):
        """Keep what the schedule keeps; returns what the backward pass has to do, in order."""
        todo = []
        for part in plan[:-1]:
            self.alive["carry", first] = self.steps[first].carry
            todo.append((first, part))
            first += schedules.length(part)
            self.evaluations += schedules.length(part)
        for k in range(first, first + plan[-1]):
            held = ("carry", k) in self.alive
            self.alive["saved", k] = self.steps[k].saved - (self.steps[k].repeated if held else 0)
            self.evaluations += 1
            todo.append((k, None))
        return todo

    def backward(self, todo):
        for first, part in reversed(todo):
            if part is None:
                self.peak = max(self.peak, sum(self.alive.values()) + self.steps[first].flowing)
                del self.alive["saved", first]
                continue
            kept = self.alive["carry", first]
            self.backward(self.forward(part if isinstance(part, tuple) else (part,), first))
            self.alive.setdefault(("carry", first), kept)
            del self.alive["carry", first]


def drawn(steps, levels, draw):
    """A random schedule of so many steps."""
    kept = draw.randint(0, steps)
    parts, left = [], steps - kept
    while left:
        size = draw.randint(1, left)
        parts.append(drawn(size, levels - 1, draw) if levels > 1 and draw.random() < 0.6 else size)
        left -= size
    return (*parts, kept)


@pytest.mark.parametrize("seed", range(40))
def test_the_bytes_of_a_schedule_are_those_of_a_machine_that_runs_it(seed):
    draw = random.Random(seed)
    steps = chain(draw.randint(1, 14), seed)
    plan = drawn(len(steps), draw.randint(1, 3), draw)
    machine = Machine(steps)
    # An inner schedule begins with a carry that is kept already; `footprint` does not count it twice.
    peak = machine.run(plan)
    counted = schedules.footprint(plan, steps).peak
    assert peak <= counted <= peak + levels_within(plan) * max(step.carry for step in steps)
    assert machine.evaluations == len(steps) + schedules.recomputed_steps(plan)


def levels_within(plan):
    """The number of levels within a schedule."""
    return max((1 + levels_within(part) for part in plan if isinstance(part, tuple)), default=0)


def every_schedule(steps):
    """All schedules of one level."""
    for kept in range(steps + 1):
        inner = range(1, steps - kept)
        for count in range(len(inner) + 1):
            for cuts in combinations(inner, count):
                edges = (0, *cuts, steps - kept) if steps > kept else (0,)
                yield (*(b - a for a, b in pairwise(edges)), kept)


def items(steps):
    return [Item(step, 0) for step in steps]


@pytest.mark.parametrize("seed", range(12))
def test_the_smallest_schedule_is_the_smallest_of_all(seed):
    """Where steps are of one kind, as in networks; elsewhere it is near."""
    steps = chain(9, seed, carry=10)
    best = min(schedules.footprint(plan, steps).peak for plan in every_schedule(9))
    assert schedules.minimum_bytes(items(steps), 1) == pytest.approx(best, abs=1 + best / 200)
    assert schedules.fit(items(steps), best - 2 - best // 100, 1) is None
    generic = chain(9, seed)
    best = min(schedules.footprint(plan, generic).peak for plan in every_schedule(9))
    assert best <= schedules.minimum_bytes(items(generic), 1) <= 1.15 * best


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_a_fitted_schedule_fits_and_recomputes_less_with_more_room(seed, levels):
    steps = chain(40, seed)
    least, all_ = schedules.minimum_bytes(items(steps), levels), memory.span(steps)
    again = []
    for share in (0, 0.05, 0.2, 0.5, 1):
        room = int(least + share * (all_ - least))
        (plan,) = schedules.fit(items(steps), room, levels)
        assert schedules.length(plan) == 40
        assert schedules.footprint(plan, steps).peak <= room
        again.append(schedules.recomputed_steps(plan))
    assert again[-1] == 0
    assert again == sorted(again, reverse=True)


def test_more_levels_need_less_room():
    steps = [StepBytes(10, 40, 10, 10, 10)] * 1000
    sizes = [schedules.minimum_bytes(items(steps), levels) for levels in (0, 1, 2)]
    assert sizes[0] > 40_000
    assert sizes[1] < 3 * (40 * 10 * 1000) ** (1 / 2)
    assert sizes[2] < 4 * (40 * 10 * 10 * 1000) ** (1 / 3)


def test_chains_with_something_between_are_fitted_together():
    """Segments end with their chain, and what lies between is kept."""
    first, second, between = chain(6, 1), chain(8, 2), StepBytes(0, 100)
    row = [
        Item(between, None),
        *(Item(s, 0) for s in first),
        Item(between, None),
        *(Item(s, 1) for s in second),
    ]
    room = schedules.minimum_bytes(row, 1)
    found = schedules.fit(row, room, 1)
    assert [schedules.length(plan) for plan in found] == [6, 8]
    held = [schedules.footprint(found[0], first), schedules.footprint(found[1], second)]
    assert max(100 + held[0].peak, 200 + held[0].kept + held[1].peak) <= room
    assert schedules.fit(row, 199, 2) is None


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 5, 16, 27, 100])
def test_uniform_schedules(steps, levels):
    every = schedules.segment_length(steps, levels)
    plan = schedules.uniform(steps, every, levels)
    assert schedules.length(plan) == steps
    assert plan[-1] == 0
    assert steps <= schedules.recomputed_steps(plan) <= levels * steps
    sizes = [schedules.length(part) for part in plan[:-1]]
    assert all(size <= every**levels for size in sizes)
    assert list(accumulate(sizes))[-1] == steps


def test_the_root_rule():
    assert schedules.uniform(10, 3) == (3, 3, 3, 1, 0)
    assert schedules.uniform(10, 2, 2) == ((2, 2), (2, 2), 2, 0)
    assert schedules.segment_length(100) == 10
    assert schedules.segment_length(27, 2) == 3


WRONG = [(), [], "3", 3, [4, 4, True], [0, 2], [-1, 3], [4, [2, 2]], [4.0, 2], {"every": 2}]


@pytest.mark.parametrize("plan", WRONG, ids=str)
def test_a_malformed_plan_is_refused_with_an_example(plan):
    with pytest.raises(InputError, match=r"\[4, 4, 2\]"):
        Checkpointed(plan=plan)


def test_a_plan_is_for_one_number_of_steps_and_stands_alone():
    assert Checkpointed(plan=[[2, 1], 3, 2]).schedule(8) == ((2, 1), 3, 2)
    with pytest.raises(InputError, match="the plan is for 8 steps, here are 9"):
        Checkpointed(plan=[[2, 1], 3, 2]).schedule(9)
    with pytest.raises(InputError, match="a plan replaces every and levels"):
        Checkpointed(every=3, plan=[3, 3])
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(InputError, match="a positive integer is needed"):
            Checkpointed(levels=wrong)
