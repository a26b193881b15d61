"""Checkpointing: some carries are kept, the backward pass recomputes the steps between them."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.utils.checkpoint import checkpoint

from resode.errors import InputError
from resode.fields.batch_norm import Moments
from resode.gradients import schedules
from resode.gradients.base import Gradient, gradients, needs_backward
from resode.gradients.chain import Chain
from resode.gradients.schedules import Schedule
from resode.grids import TimeGrid
from resode.integrators.base import Carry, Integrator
from resode.memory import Footprint, StepBytes


@gradients.register("checkpointed", summary="keeps some states, recomputes the steps between them")
@dataclass(frozen=True)
class Checkpointed(Gradient):
    """Recomputation (Griewank & Walther 2000; Chen et al. 2016, arXiv:1604.06174).

    The gradient is that of `stored`, bit for bit on a CPU, for at most about one more forward pass per level.
    Random numbers are drawn again as in the first pass; running statistics are updated once, and on a CPU
    `BatchNorm2d` reuses the mean and variance of the first pass (`resode.fields.batch_norm`).

    Args:
        every: segment length in steps (default: the root of the number of steps).
        levels: with 2 levels each segment is divided again when it is recomputed.
        plan: the recomputation schedule itself (`resode.gradients.schedules`), instead of the two above.

    Raises:
        InputError: numbers that are not positive, a plan together with every or levels, a malformed plan.
    """

    every: int | None = None
    levels: int = 1
    plan: Schedule | None = None

    def __post_init__(self) -> None:
        for name, unit in (("every", "steps"), ("levels", "of recomputation")):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"checkpointed: {name} {value!r} {unit}; a positive integer is needed")
        if self.plan is not None:
            if self.every is not None or self.levels != 1:
                raise InputError("checkpointed: a plan replaces every and levels; give one or the other")
            object.__setattr__(self, "plan", schedules.parse(self.plan))

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Raise `InputError` for an adaptive solver, or a plan for another number of steps."""
        super().check(integrator, grid)
        self.schedule(grid.steps)

    def schedule(self, steps: int) -> Schedule:
        """The recomputation schedule for a number of steps.

        Raises:
            InputError: the given plan is for another number of steps.
        """
        if self.plan is None:
            length = self.every or schedules.segment_length(steps, self.levels)
            return schedules.uniform(steps, length, self.levels)
        if schedules.length(self.plan) != steps:
            raise InputError(
                f"checkpointed: the plan is for {schedules.length(self.plan)} steps, here are {steps}; "
                "remove it, or give `every`"
            )
        return self.plan

    def integrate(self, chain: Chain, y: Tensor) -> Tensor:
        if not needs_backward():
            return super().integrate(chain, y)
        return chain.state(_run(chain, self.schedule(chain.steps), 0, chain.start(y), None, record=True))

    def footprint(self, steps: Sequence[StepBytes]) -> Footprint:
        return schedules.footprint(self.schedule(len(steps)), steps)


def _run(
    chain: Chain, schedule: Schedule, first: int, carry: Carry, moments: Moments | None, *, record: bool
) -> Carry:
    """Run the steps of a schedule, starting at step `first`."""
    *segments, kept = schedule
    for segment in segments:
        carry = _run_segment(chain, segment, first, carry, moments, record=record)
        first += schedules.length(segment)
    for k in range(first, first + schedules.length(kept)):
        with contextlib.nullcontext() if moments is None else moments.step(k, record):
            carry = chain.step(k, carry, record)
    return carry


@_disable_dynamo  # torch.compiler.disable, but it imports the compiler at the first call only
def _run_segment(
    chain: Chain,
    segment: "int | Schedule",
    first: int,
    carry: Carry,
    moments: Moments | None,
    *,
    record: bool,
) -> Carry:
    """Run the steps of a segment, and keep the carry before it only."""
    schedule = segment if isinstance(segment, tuple) else (segment,)
    run = _Segment(chain, schedule, first, moments or Moments(), record)
    result: Carry = checkpoint(
        run, *carry, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), run)
    )
    return result


class _Segment:
    """Steps of a chain, and the context in which they are recomputed, once for each backward pass.

    Args:
        chain: the chain.
        schedule: the schedule of these steps.
        first: the number of the first step.
        moments: the batch moments of these steps.
        record: whether the forward pass updates running statistics.
    """

    def __init__(self, chain: Chain, schedule: Schedule, first: int, moments: Moments, record: bool) -> None:
        self.chain, self.schedule, self.first = chain, schedule, first
        self.moments, self.record = moments, record
        self.own = chain.segment(range(first, first + schedules.length(schedule)))
        self.snapshot, self.recomputing = self.own.snapshot(), False

    def __call__(self, *carry: Tensor) -> Carry:
        record = self.record and not self.recomputing
        end = _run(self.chain, self.schedule, self.first, carry, self.moments, record=record)
        torch.clear_autocast_cache()  # it would keep the casts of parameters until autocast ends
        return end

    def __enter__(self) -> None:
        self.own.check_unchanged(self.snapshot, second_derivative=True)
        self.recomputing = True

    def __exit__(self, *_: object) -> None:
        self.recomputing = False
