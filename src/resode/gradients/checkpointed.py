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
from resode.gradients.plans import Plan
from resode.integrators.base import Carry
from resode.memory import Held, StepBytes


@gradients.register("checkpointed", summary="some states are kept, the steps between are done again")
@dataclass(frozen=True)
class Checkpointed(Gradient):
    """Recomputation (Griewank & Walther 2000; Chen et al. 2016, arXiv:1604.06174).

    The gradient is that of `stored`, bit for bit on a CPU, at about one more forward pass a level. Random
    numbers are drawn again as they were; running statistics are not touched again.

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
        return chain.state(_run(chain, self.planned(chain.steps), 0, chain.start(y), record=True))

    def held(self, steps: Sequence[StepBytes]) -> Held:
        return plans.held(self.planned(len(steps)), steps)


def _run(chain: Chain, plan: Plan, first: int, carry: Carry, *, record: bool) -> Carry:
    """The steps of a plan, from number `first` on."""
    for part in plan[:-1]:
        carry = _again(chain, part, first, carry, record=record)
        first += plans.length(part)
    for k in range(first, first + plans.length(plan[-1])):
        carry = chain.step(k, carry, record)
    return carry


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types
def _again(chain: Chain, part: "int | Plan", first: int, carry: Carry, *, record: bool) -> Carry:
    """Some steps that keep only the carry they begin with."""
    again = False
    plan = part if isinstance(part, tuple) else (part,)

    def run(*carry: Tensor) -> Carry:
        return _run(chain, plan, first, carry, record=record and not again)

    present = chain.present()

    class Recomputing:  # entered once for each backward pass through the graph
        def __enter__(self) -> None:
            nonlocal again
            chain.check_unchanged(present, twice=True)
            again = True

        def __exit__(self, *_: object) -> None:
            nonlocal again
            again = False

    result: Carry = checkpoint(
        run, *carry, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), Recomputing())
    )
    return result
