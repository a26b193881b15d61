"""Gradient methods: their interface, and plain backpropagation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resode import memory
from resode.errors import InputError
from resode.gradients.chain import Chain
from resode.grids import TimeGrid
from resode.integrators.base import Evaluation, FixedStep, Integrator
from resode.memory import Footprint, StepBytes
from resode.registry import Registry


class Gradient(ABC):
    """A gradient method; every concrete one is a frozen dataclass."""

    @property
    def name(self) -> str:
        """The registered name and the chosen options."""
        chosen = gradients.describe(self)
        if isinstance(chosen, str):
            return chosen
        return ", ".join([chosen.pop("name"), *(f"{key} {value}" for key, value in chosen.items())])

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Raise `InputError` for a scheme that the method cannot differentiate, with the fix."""
        if not isinstance(integrator, FixedStep):
            raise InputError(
                f"gradient {self.name}: {integrator.name} chooses its own steps; take stored or adjoint"
            )

    def backward_evaluations(self, integrator: FixedStep, grid: TimeGrid) -> tuple[Evaluation, ...]:
        """The evaluations that only the backward pass makes, at times of its own."""
        return ()

    def integrate(self, chain: Chain, y: Tensor) -> Tensor:
        """The last state, differentiable in y and in all parameters; here by autograd through all steps."""
        if (profiler := _profiler()) is not None:
            return chain.state(profiler.run(self, chain, chain.carries(y)))
        carry = chain.start(y)
        for k in range(chain.steps):
            carry = chain.step(k, carry)
        return chain.state(carry)

    @abstractmethod
    def footprint(self, steps: Sequence[StepBytes]) -> Footprint:
        """The bytes of a chain of steps: kept for the backward pass, and at its peak."""

    def differentiate(self, chain: Chain, k: int, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Run step k forwards and backwards between carries of these shapes, to measure its memory."""
        leaves = tuple(t.detach().requires_grad_() for t in before)
        ends = [t for t in chain.step(k, leaves, record=False) if t.requires_grad]
        torch.autograd.backward(ends, [torch.empty_like(t) for t in ends])


def _profiler() -> memory.Profiler | None:
    """The active profiler of a forward pass that is to be differentiated."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return memory.active_profiler()


def needs_backward() -> bool:
    """Whether a method has to provide its own backward pass: gradients are on, and no profiler runs."""
    return torch.is_grad_enabled() and _profiler() is None


gradients: Registry[Gradient] = Registry("gradient", "")


@gradients.register("stored", summary="plain backpropagation: every operation keeps what it needs")
@dataclass(frozen=True)
class Stored(Gradient):
    """Plain backpropagation by autograd."""

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Accept any scheme."""

    def footprint(self, steps: Sequence[StepBytes]) -> Footprint:
        return Footprint(sum(step.saved for step in steps), memory.span(steps))
