"""Divergence: the layer in which NaN or infinity first appears.

The loop only keeps a flag on the device. When it is set, the run is replayed from its last checkpoint with
every layer watched; the replay is exact, since all randomness is a function of (seed, epoch, sample).
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resode.training.loop.step import Trainer

_RUNNING = ("running_mean", "running_var")


def locate(trainer: Trainer, iteration: int) -> str:
    """Train up to `iteration`, eagerly, and describe the first value that is not finite, in any rank.

    Afterwards the trainer's position is that of the step in which it appeared.
    """
    world = trainer.setup.world
    while trainer.position.iteration <= min(iteration, trainer.iterations - 1):
        trainer.change_where_due()
        trainer.run_eagerly()
        before = replace(trainer.position)
        with watching(trainer.module) as watched, torch.compiler.set_stance("force_eager"):
            trainer.step()
        what = (
            watched.first
            or not_finite(trainer.module, gradients=True)
            or not_finite(trainer.module)
            or ("the loss" if trainer.first_bad >= 0 else None)
        )
        reports = [each for each in world.all_gather(what) if each is not None]
        if reports:
            trainer.position = before
            return reports[0]
        if trainer.position.step == trainer.steps:
            trainer.position.epoch, trainer.position.step = trainer.position.epoch + 1, 0
    return "the loss (the replay stayed finite)"


@dataclass
class Watched:
    """The first output that was not finite, in words; None so far."""

    first: str | None = None


@contextlib.contextmanager
def watching(module: nn.Module) -> Iterator[Watched]:
    """Watch the outputs of all layers in the forward passes of the block."""
    watched = Watched()
    handles = []
    for name, layer in module.named_modules():
        if next(layer.children(), None) is None:
            handles.append(layer.register_forward_hook(_watch(name or type(layer).__name__, watched)))
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, watched: Watched) -> Callable[[nn.Module, object, object], None]:
    def check(layer: nn.Module, inputs: object, output: object) -> None:
        if watched.first is None and isinstance(output, Tensor) and not torch.isfinite(output).all():
            watched.first = f"the output of layer '{name}' ({type(layer).__name__})"

    return check


@torch.no_grad()
def not_finite(module: nn.Module, gradients: bool = False) -> str | None:
    """The first parameter or running statistic (or gradient) that is not finite, or None.

    Other buffers may hold infinity, as masks do.
    """
    if gradients:
        tensors = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    else:
        running = {name: b for name, b in module.named_buffers() if name.endswith(_RUNNING)}
        tensors = {**dict(module.named_parameters()), **running}
    norms = torch._foreach_norm(list(tensors.values()))
    if not norms or torch.isfinite(torch.stack(norms)).all():
        return None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            layer = name.rpartition(".")[0] or name
            return f"the {'gradient of' if gradients else 'value of'} '{name}' in layer '{layer}'"
    return None
