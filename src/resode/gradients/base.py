"""Gradient methods: what they have in common, and the plain one."""

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
from resode.memory import Held, StepBytes
from resode.registry import Registry


class Gradient(ABC):
    """A gradient method; every concrete one is a frozen dataclass."""

    @property
    def name(self) -> str:
        """How a recipe calls it."""
        chosen = gradients.describe(self)
        if isinstance(chosen, str):
            return chosen
        return ", ".join([chosen.pop("name"), *(f"{key} {value}" for key, value in chosen.items())])

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Refuse a scheme that the method cannot run (`InputError`, with the mend)."""
        if not isinstance(integrator, FixedStep):
            raise InputError(
                f"gradient {self.name}: {integrator.name} chooses its own steps; take stored or adjoint"
            )

    def evaluations(self, integrator: FixedStep, grid: TimeGrid) -> tuple[Evaluation, ...]:
        """The evaluations that the backward pass makes beyond those of the forward pass."""
        return ()

    def integrate(self, chain: Chain, y: Tensor) -> Tensor:
        """The last state, differentiable in y and in all parameters."""
        y = self.prepared(y)
        if not torch.is_grad_enabled():
            return chain.final(y)
        if not torch.compiler.is_compiling() and (watch := memory.watch()) is not None:
            return chain.state(watch.part(self, chain, chain.carries(y)))
        return self.through(chain, y)

    def prepared(self, y: Tensor) -> Tensor:
        """The first state as the method needs it."""
        return y

    @abstractmethod
    def through(self, chain: Chain, y: Tensor) -> Tensor:
        """The last state, with a backward pass by this method."""

    @abstractmethod
    def held(self, steps: Sequence[StepBytes]) -> Held:
        """The bytes of a chain of steps: kept for the backward pass, and at the peak of its own."""

    def differentiate(self, chain: Chain, k: int, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Step k alone, forwards and backwards, between carries of such shapes (its memory is measured)."""
        leaves = tuple(t.detach().requires_grad_() for t in before)
        ends = [t for t in chain.step(k, leaves, record=False) if t.requires_grad]
        torch.autograd.backward(ends, [torch.empty_like(t) for t in ends])


gradients: Registry[Gradient] = Registry("gradient", "")


@gradients.register("stored", summary="backpropagation through all that was kept")
@dataclass(frozen=True)
class Stored(Gradient):
    """Autograd as it is."""

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Any scheme will do."""

    def through(self, chain: Chain, y: Tensor) -> Tensor:
        return chain.final(y)

    def held(self, steps: Sequence[StepBytes]) -> Held:
        return Held(sum(step.saved for step in steps), memory.span(steps))
