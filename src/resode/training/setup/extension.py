"""Extension: what a network adds to its training step.

The loop calls what is offered and knows nothing of dynamic blocks, controls or gradient methods.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from resode.blocks import DynamicBlock, dynamic_blocks
from resode.controls import controls_of, roughness
from resode.errors import InputError
from resode.gradients import Reversible, gradients
from resode.models.budget import set_gradients
from resode.training.recipe.network import Box, Refinement, Smoothness
from resode.training.setup.bounds import clamp, without_parameters
from resode.training.setup.changes import Change, Changed, changed
from resode.training.setup.memory import StepMemory


class Extension(Protocol):
    """What the loop asks of a network beside its forward pass."""

    def penalty(self) -> Tensor | None:
        """A term that is added to the loss; None: nothing is added."""

    def project(self) -> None:
        """Project the parameters onto their bounds, after each optimizer step."""

    def evaluations(self) -> int | None:
        """Evaluations of fields in the training step just done; None: nothing is counted."""

    def reset_counters(self) -> None:
        """Set the counts of evaluations to zero."""

    def drift(self, inputs: Tensor) -> float | None:
        """Once an epoch: the error of states recovered by inverting steps; None: none are."""

    def fall_back(self) -> None:
        """Use gradient methods without such errors from now on."""

    def skips_parameters(self) -> bool:
        """Tell DistributedDataParallel whether a step may leave a parameter without a gradient."""

    def changed(self, change: Change) -> Changed:
        """The network after a change of the schedule; the present one stays as it is."""

    def of(self, module: nn.Module) -> "Extension":
        """The same for another network."""


@dataclass(frozen=True)
class ExtensionSettings:
    """What an experiment asks of a network's extension.

    Args:
        smoothness: weights of the roughness of theta(t) in the loss.
        box: bounds on parameters.
        changes: of the network during training, in order.
    """

    smoothness: Smoothness | None
    box: Box | None
    changes: Sequence[Change]

    def check(self, network: nn.Module | None) -> None:
        """Raise `InputError` where a network, on any device, does not fit; None is not checked."""
        if network is None:
            return
        refined = any(isinstance(change, Refinement) for change in self.changes)
        bounds_controls = self.box is not None and self.box.controls is not None
        given = {"smoothness": self.smoothness is not None, "box": bounds_controls, "refine": refined}
        keys = [key for key, present in given.items() if present]
        if keys and not controls_of(network):
            without = "the network has no dynamic blocks whose theta(t) it could act on; remove it"
            raise InputError(*(f"{key}: {without}" for key in keys))
        if self.box is not None and (lost := without_parameters(network, self.box)):
            raise InputError(*(f"box.{kind}: the network has none; remove it" for kind in lost))
        check_precision(network)
        for change in self.changes:
            network = changed(network, change).module
            check_precision(network)


@dataclass(frozen=True)
class DynamicExtension:
    """What dynamic blocks offer; a network without any offers changes alone.

    Args:
        module: the network.
        memory: of its training step; changes and `fall_back` keep its budget.
        settings: of the experiment.
    """

    module: nn.Module
    memory: StepMemory
    settings: ExtensionSettings

    @cached_property
    def blocks(self) -> tuple[DynamicBlock, ...]:
        """The dynamic blocks of the network."""
        return dynamic_blocks(self.module)

    def penalty(self) -> Tensor | None:
        """The roughness of theta(t) (`resode.controls.roughness`)."""
        weights = self.settings.smoothness
        if weights is None:
            return None
        return roughness(self.module, weights.total_variation, weights.dirichlet, weights.epsilon)

    def project(self) -> None:
        """Clamp the parameters to their bounds."""
        if self.settings.box is not None:
            clamp(self.module, self.settings.box)

    def evaluations(self) -> int | None:
        """Evaluations of fields: of the forward pass with fixed steps; of adaptive solvers also backwards."""
        if not self.blocks:
            return None
        return sum(block.field_evaluations + block.function_evaluations for block in self.blocks)

    def reset_counters(self) -> None:
        """Set the counts of adaptive solvers to zero."""
        for block in self.blocks:
            block.function_evaluations = 0

    @torch.no_grad()
    def drift(self, inputs: Tensor) -> float | None:
        """The largest relative error of the states that reversible gradients recover, on a batch.

        None without reversible gradients. Running statistics and random generators stay as they are.
        """
        reversible = [block for block in self.blocks if isinstance(block.stage.gradient, Reversible)]
        if not reversible:
            return None
        errors = [0.0]

        def measure(block: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(block, DynamicBlock)
            error = block.drift(given[0])
            if error is not None:
                errors.append(error.item())

        hooks = [block.register_forward_pre_hook(measure) for block in reversible]
        devices = [inputs.device] if inputs.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), _restored_buffers(self.module):
                self.module(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return max(errors)

    def fall_back(self) -> None:
        """Checkpointed gradients in place of reversible ones."""
        self.memory.fall_back(self.module)

    def skips_parameters(self) -> bool:
        """A dynamic block may leave a control without a gradient."""
        return bool(self.blocks)

    def changed(self, change: Change) -> Changed:
        """The network after a change, with gradient methods that keep the memory budget."""
        made = changed(self.module, change)
        if self.memory.budget is not None:
            set_gradients(made.module, self.memory.choose(made.module).methods)
        return made

    def of(self, module: nn.Module) -> "DynamicExtension":
        """The same for another network."""
        return replace(self, module=module)

    def resolve_gradients(
        self, given: Sequence[object] | None
    ) -> tuple[tuple[object, ...] | None, tuple[str, ...]]:
        """Set the network's gradient methods: those of the experiment, or what the memory budget chooses.

        Args:
            given: the methods by hand, or as an earlier call chose them.

        Returns:
            The methods as plain data (None: the network's own), and what the user should know.

        Raises:
            InputError: nothing meets the budget, now or after a change.
        """
        chosen, notes = given, tuple[str, ...]()
        if given is not None:
            set_gradients(self.module, given)
            check_precision(self.module)
            self.memory.check(self.module)
        elif self.memory.budget is not None:
            choice = self.memory.choose(self.module)
            set_gradients(self.module, choice.methods)
            chosen = [gradients.describe(method) for method in choice.methods]
            notes = (self.memory.describe(self.module, choice),)
        if self.memory.budget is not None:
            network = self.module
            for change in self.settings.changes:
                network = changed(network, change).module
                self.memory.choose(network)
        return None if chosen is None else tuple(chosen), notes


def check_precision(network: nn.Module) -> None:
    """Every block can be trained in fp32, the precision of states and parameters."""
    for block in dynamic_blocks(network):
        block.check(torch.float32)


@contextlib.contextmanager
def _restored_buffers(module: nn.Module) -> Iterator[None]:
    """Restore all buffers of a module after the block."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
