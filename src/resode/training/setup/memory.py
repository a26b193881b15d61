"""Memory: the bytes of a training step, and the gradient methods that keep it within a budget."""

from dataclasses import dataclass

import torch
from torch import nn

from resode import cost
from resode.blocks import adaptive_solvers, dynamic_blocks
from resode.errors import InputError
from resode.gradients import Checkpointed, Reversible
from resode.memory import Shape
from resode.models.budget import Budget, Choice, set_gradients
from resode.quantities import size
from resode.training.optim.optimizers import moments
from resode.training.recipe.experiment import Experiment
from resode.training.recipe.optimizer import Average, Optimizer


@dataclass(frozen=True)
class StepMemory:
    """What the memory of a training step depends on, besides the network.

    Args:
        shape: (C, H, W) of an image.
        batch_size: images in a step.
        precision: of the forward pass; `auto` counts as fp32.
        optimizer: keeps some tensors of the size of a parameter for each.
        average: of the parameters, which keeps one more.
        budget: bytes that a step may take; None: as many as it needs.
    """

    shape: Shape
    batch_size: int
    precision: str
    optimizer: Optimizer
    average: Average | None = None
    budget: int | None = None

    @classmethod
    def of(cls, experiment: Experiment, shape: Shape) -> "StepMemory":
        """The memory of an experiment's training step."""
        e = experiment
        return cls(shape, e.batch_size, e.precision, e.optimizer, e.average, e.memory_budget)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the forward pass."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def copies(self) -> int:
        """Tensors of the size of a parameter that optimizer and average keep for each."""
        return len(moments(self.optimizer)) + (self.average is not None)

    def cost(self, module: nn.Module) -> cost.Cost:
        """What a step costs, predicted by counting."""
        return cost.estimate(module, self.shape, self.batch_size, dtype=self.dtype, moments=self.copies)

    def fixed_bytes(self, module: nn.Module) -> tuple[int, int, int]:
        """Bytes of the parameters, of their gradients, and of optimizer and average."""
        own, trainable = cost.parameter_bytes(module)
        return own, trainable, self.copies * trainable

    def choices(self, module: nn.Module) -> Budget:
        """The gradient methods that the network can use, with their bytes."""
        return Budget(module, self.shape, self.batch_size, self.dtype)

    def choose(self, module: nn.Module, choices: Budget | None = None) -> Choice:
        """The fastest gradient methods that keep a step within the budget.

        Args:
            module: the network; not changed.
            choices: of this network, where they are known.

        Raises:
            InputError: none does; names the smallest budget that one meets.
        """
        assert self.budget is not None
        return (choices or self.choices(module)).within(self.budget, sum(self.fixed_bytes(module)))

    def describe(self, module: nn.Module, chosen: Choice) -> str:
        """A line about the methods chosen for a network."""
        assert self.budget is not None
        recomputed = f", {chosen.recomputed:.0%} of a forward pass recomputed" if chosen.recomputed else ""
        activations = chosen.activation_bytes
        predicted, solvers = sum(self.fixed_bytes(module)) + activations, adaptive_solvers(module)
        return (
            f"memory budget {size(self.budget)}: {chosen.name}{recomputed}; predicted {size(predicted)}, of "
            f"which activations {size(activations)}"
            + (f"; one evaluation counted for {solvers}, which may take more" if solvers else "")
        )

    def check(self, module: nn.Module) -> None:
        """Raise `InputError` where the network's own gradient methods exceed the budget."""
        if self.budget is None:
            return
        needed = sum(self.fixed_bytes(module)) + self.cost(module).activation_bytes
        if needed > 1.1 * self.budget:  # predictions are accurate to a tenth
            raise InputError(
                f"gradients: a step takes {size(needed)}, more than memory_budget {size(self.budget)}: "
                "remove gradients (--set gradients=null), so that the budget chooses them"
            )

    def fall_back(self, module: nn.Module) -> None:
        """Replace reversible gradients by checkpointed ones, within the budget where possible."""
        if self.budget is not None:
            choices = self.choices(module)
            room = self.budget - sum(self.fixed_bytes(module))
            least = min(
                choices.smallest_by_kind(allow_reversible=False), key=lambda choice: choice.activation_bytes
            )
            set_gradients(module, (choices.fastest(room, allow_reversible=False) or least).methods)
            return
        for block in dynamic_blocks(module):
            if isinstance(block.stage.gradient, Reversible):
                block.set_gradient(Checkpointed())
