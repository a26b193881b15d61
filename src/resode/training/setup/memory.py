"""Gradient methods of a run: what a memory budget chooses, how states drift, what is compiled."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from resode import acceleration, cost
from resode.blocks import DynamicBlock, dynamic_blocks
from resode.errors import InputError
from resode.gradients import Checkpointed, Gradient, Reversible, Stored, gradients
from resode.memory import Shape
from resode.models.budget import Budget, Choice, differentiated, method_of, set_gradients
from resode.models.residual import ResidualNetwork
from resode.quantities import size
from resode.training.optim.optimizers import moments
from resode.training.recipe.experiment import Experiment


def predicted_cost(experiment: Experiment, module: nn.Module, shape: Shape) -> cost.Cost:
    """What a training step of the experiment costs, by counting (`auto` precision counts as fp32).

    An average of the parameters counts as one number more that the optimizer keeps for each.
    """
    batch, dtype = experiment.batch_size, forward_dtype(experiment)
    return cost.estimate(module, shape, batch, dtype=dtype, moments=_moments(experiment))


def fixed_bytes(experiment: Experiment, module: nn.Module) -> tuple[int, int, int]:
    """Bytes of the parameters, of their gradients, and of what the optimizer keeps."""
    own, trainable = cost.parameter_bytes(module)
    return own, trainable, _moments(experiment) * trainable


def _moments(experiment: Experiment) -> int:
    return len(moments(experiment.optimizer)) + (experiment.average is not None)


def forward_dtype(experiment: Experiment) -> torch.dtype:
    """Of the forward pass (`auto` precision counts as fp32)."""
    return torch.bfloat16 if experiment.precision == "bf16" else torch.float32


def budget(experiment: Experiment, module: nn.Module, shape: Shape) -> Budget:
    """The choices of gradient methods for the steps of an experiment."""
    return Budget(module, shape, experiment.batch_size, forward_dtype(experiment))


def fitted(
    experiment: Experiment, module: nn.Module, shape: Shape, choices: Budget | None = None
) -> tuple[Choice, str]:
    """The gradient methods that keep a training step within `memory_budget`, and a line about them.

    Args:
        experiment: gives the budget.
        module: the network.
        shape: (C, H, W) of one image.
        choices: where they are known already.

    Raises:
        InputError: none does; says the smallest budget that one meets.
    """
    assert experiment.memory_budget is not None
    room, fixed = int(experiment.memory_budget), sum(fixed_bytes(experiment, module))
    choices = choices or budget(experiment, module, shape)
    chosen = choices.fit(room - fixed)
    if chosen is None:
        least = min(choice.activation_bytes for choice in choices.smallest())
        enough = fixed + least
        enough += 10**5 if enough < 10**8 else 10**6 if enough < 10**9 else 10**7  # as it is printed, too
        raise InputError(
            f"memory_budget {size(room)}: no gradient method meets it; parameters, gradients and "
            f"optimizer take {size(fixed)}, activations at least {size(least)} at batch "
            f"{experiment.batch_size}: give {size(enough)}, or a smaller batch_size"
        )
    again = f", {chosen.again:.0%} of a forward pass done again" if chosen.again else ""
    predicted, activations = fixed + chosen.activation_bytes, chosen.activation_bytes
    return chosen, (
        f"memory budget {size(room)}: {chosen.name}{again}; predicted {size(predicted)}, of "
        f"which activations {size(activations)}"
    )


def described(methods: tuple[Gradient, ...]) -> tuple[object, ...]:
    """Gradient methods as plain data."""
    return tuple(gradients.describe(method) for method in methods)


def check_given(experiment: Experiment, module: nn.Module, shape: Shape) -> None:
    """Refuse gradient methods that are given by hand and do not fit a memory budget that is given, too.

    Raises:
        InputError: says what they need.
    """
    if experiment.memory_budget is None:
        return
    room = int(experiment.memory_budget)
    needed = sum(fixed_bytes(experiment, module)) + predicted_cost(experiment, module, shape).activation_bytes
    if needed > 1.1 * room:  # a prediction holds to a tenth
        raise InputError(
            f"gradients: a step takes {size(needed)}, more than memory_budget {size(room)}: "
            "leave gradients out (--set gradients=null), so that the budget chooses them"
        )


# ---------------------------------------------------------------- drift


@torch.no_grad()
def reconstruction_error(module: nn.Module, inputs: Tensor) -> float | None:
    """How far recovered states are from the first, over all reversible blocks; None where there are none.

    Args:
        module: the network; its running statistics and the random generators are as before in the end.
        inputs: a batch.
    """
    blocks = [block for block in dynamic_blocks(module) if isinstance(block.stage.gradient, Reversible)]
    if not blocks:
        return None
    worst = [0.0]

    def measure(block: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(block, DynamicBlock)
        error = block.drift(given[0])
        if error is not None:
            worst.append(error.item())

    hooks = [block.register_forward_pre_hook(measure) for block in blocks]
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), _untouched(module):
            module(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return max(worst)


@contextlib.contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Afterwards all buffers are as they were."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def fall_back(experiment: Experiment, module: nn.Module, shape: Shape) -> None:
    """Checkpointed gradients in the place of reversible ones; within the memory budget where that can be."""
    if experiment.memory_budget is not None:
        choices = budget(experiment, module, shape)
        room = int(experiment.memory_budget) - sum(fixed_bytes(experiment, module))
        least = min(choices.smallest(undo=False), key=lambda choice: choice.activation_bytes)
        set_gradients(module, (choices.fit(room, undo=False) or least).methods)
        return
    for block in dynamic_blocks(module):
        if isinstance(block.stage.gradient, Reversible):
            block.set_gradient(Checkpointed())


# ---------------------------------------------------------------- compilation


def compiled(module: nn.Module, backend: str | Callable[..., Any] | None = None) -> nn.Module:
    """The network by torch.compile: as a whole, or in parts where a backward pass does steps again.

    There each unit, each field at a control node and each part that is stored is compiled, in place.
    """
    parts = differentiated(module)
    backend = backend or acceleration.backend.get()
    # Units share their code, and each kind and mode of them is a graph. Set for good: Dynamo reads the limit
    # at each compilation, in later calls of the network; torch.compile(recompile_limit=...) needs torch 2.12.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 64)
    if all(isinstance(method_of(part), Stored) for part in parts):
        whole: nn.Module = torch.compile(module, backend=backend, dynamic=False)  # type: ignore[assignment]  # it calls alike
        return whole
    for part in parts:
        if isinstance(method_of(part), Stored):
            part.compile(backend=backend, dynamic=False)
            continue
        for unit in part.units() if isinstance(part, ResidualNetwork) else part.controls:
            unit.compile(backend=backend, dynamic=False)
    return module
