"""Schedules: the learning rate as a function of the fraction x of the training that is done.

    lr_k = lr factor(k / n)    at iteration k = 0 ... n - 1

Every schedule is a closed form: a resumed run needs no state, and a schedule can be plotted before it is run.
"""

import bisect
import math
from typing import assert_never

from resode.training.recipe.schedule import Constant, Cosine, LinearExponential, MultiStep, OneCycle, Schedule


def factor(schedule: Schedule, progress: float) -> float:
    """The learning rate at x = `progress` in [0, 1], relative to lr, without warm-up."""
    x = progress
    match schedule:
        case Constant():
            return 1.0
        case MultiStep(milestones=milestones, factor=drop):
            return drop ** bisect.bisect_right(milestones, x)
        case Cosine(final=final):
            return final + (1 - final) * (1 + math.cos(math.pi * x)) / 2
        case OneCycle(peak=peak, start=start, final=final):
            if x < peak:
                return start + (1 - start) * x / peak
            return 1 + (final - 1) * (x - peak) / (1 - peak)
        case LinearExponential(peak=peak):
            return (x / peak) * math.exp(1 - x / peak)
        case _:
            assert_never(schedule)


def learning_rate(schedule: Schedule, lr: float, iteration: int, iterations: int, steps: int) -> float:
    """The learning rate of one iteration, with warm-up.

    Args:
        schedule: the schedule's settings.
        lr: the learning rate at its peak.
        iteration: 0 ... iterations - 1.
        iterations: iterations of the whole training.
        steps: iterations of one epoch, the unit of a warm-up.
    """
    value = lr * factor(schedule, iteration / iterations)
    if schedule.warmup is not None and iteration < schedule.warmup.epochs * steps:
        start, fraction = schedule.warmup.factor, iteration / (schedule.warmup.epochs * steps)
        value *= start if schedule.warmup.shape == "constant" else start + (1 - start) * fraction
    return value
