"""Checkpointing: some carries are kept, the steps between them are done again in the backward pass."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from resode.errors import InputError
from resode.gradients import plans
from resode.gradients.base import Gradient, gradients
from resode.gradients.chain import Chain
from resode.gradients.moments import Moments
from resode.gradients.plans import Plan
from resode.grids import TimeGrid
from resode.integrators.base import Carry, Integrator
from resode.memory import Held, StepBytes


@gradients.register("checkpointed", summary="some states are kept, the steps between are done again")
@dataclass(frozen=True)
class Checkpointed(Gradient):
    """Recomputation (Griewank & Walther 2000; Chen et al. 2016, arXiv:1604.06174).

    The gradient is that of `stored`, bit for bit on a CPU, at about one more forward pass a level, or less:
    batch normalisations use the moments that they had (`resode.gradients.moments`). Random numbers are drawn
    again as they were; running statistics are not touched again.

    Args:
        every: of how many steps a segment is; left out, the root of the number of steps.
        levels: 2 divides each segment again when it is done again.
        plan: the segments themselves, in place of the two above (`resode.gradients.plans`).

    Raises:
        InputError: numbers that are not positive, both kinds at once, a plan that is none.
    """

    every: int | None = None
    levels: int = 1
    plan: Plan | None = None

    def __post_init__(self) -> None:
        for name, unit in (("every", "steps"), ("levels", "of recomputation")):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"checkpointed: {name} {value!r} {unit}; a positive integer is needed")
        if self.plan is not None:
            if self.every is not None or self.levels != 1:
                raise InputError("checkpointed: a plan says all; leave every and levels out")
            object.__setattr__(self, "plan", plans.checked(self.plan))

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Refuse an adaptive solver, and a plan of another number of steps."""
        super().check(integrator, grid)
        self.planned(grid.steps)

    def planned(self, steps: int) -> Plan:
        """The plan of so many steps.

        Raises:
            InputError: the given plan is of another number of steps.
        """
        if self.plan is None:
            return plans.uniform(steps, self.every or plans.root(steps, self.levels), self.levels)
        if plans.length(self.plan) != steps:
            raise InputError(
                f"checkpointed: the plan is of {plans.length(self.plan)} steps, here are {steps}; leave it "
                "out, or give `every`"
            )
        return self.plan

    def through(self, chain: Chain, y: Tensor) -> Tensor:
        return chain.state(_run(chain, self.planned(chain.steps), 0, chain.start(y), None, record=True))

    def held(self, steps: Sequence[StepBytes]) -> Held:
        return plans.held(self.planned(len(steps)), steps)


def _run(
    chain: Chain, plan: Plan, first: int, carry: Carry, moments: Moments | None, *, record: bool
) -> Carry:
    """The steps of a plan, from number `first` on."""
    for part in plan[:-1]:
        carry = _again(chain, part, first, carry, moments, record=record)
        first += plans.length(part)
    for k in range(first, first + plans.length(plan[-1])):
        with contextlib.nullcontext() if moments is None else moments.step(k, noting=record):
            carry = chain.step(k, carry, record)
    return carry


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types
def _again(
    chain: Chain, part: "int | Plan", first: int, carry: Carry, moments: Moments | None, *, record: bool
) -> Carry:
    """Some steps that keep only the carry they begin with."""
    segment = _Segment(chain, part if isinstance(part, tuple) else (part,), first, moments, record)
    result: Carry = checkpoint(
        segment, *carry, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), segment)
    )
    return result


class _Segment:
    """Steps of a chain, and the context in which they are done again, once for each backward pass.

    Args:
        chain: the chain.
        plan: of these steps.
        first: the number of the first.
        moments: those of a longer segment that has these steps; None where there is none.
        record: whether running statistics take in the forward pass.
    """

    def __init__(self, chain: Chain, plan: Plan, first: int, moments: Moments | None, record: bool) -> None:
        self.chain, self.plan, self.first, self.record = chain, plan, first, record
        self.own = chain.part(range(first, first + plans.length(plan)))
        self.moments = Moments(self.own.modules()) if moments is None else moments
        self.present, self.again = self.own.present(), False

    def __call__(self, *carry: Tensor) -> Carry:
        record = self.record and not self.again
        with self.moments.taken():
            end = _run(self.chain, self.plan, self.first, carry, self.moments, record=record)
        torch.clear_autocast_cache()  # which keeps the copies of parameters until autocast ends
        return end

    def __enter__(self) -> None:
        self.own.check_unchanged(self.present, twice=True)
        self.again = True

    def __exit__(self, *_: object) -> None:
        self.again = False
