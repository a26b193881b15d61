"""Divergence: where NaN or infinity first appeared.

The loop only keeps a flag on the device. When it is up, the run is replayed from its last checkpoint with
every layer watched; the replay is exact, because all randomness is a function of (seed, epoch, sample).
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Finding:
    """The first thing that was not finite, or None so far."""

    what: str | None = None


@contextlib.contextmanager
def watching(module: nn.Module) -> Iterator[Finding]:
    """Watch the outputs of all layers in a forward pass; the first that is not finite is the finding."""
    finding = Finding()
    handles = []
    for name, layer in module.named_modules():
        if next(layer.children(), None) is None:
            handles.append(layer.register_forward_hook(_watch(name or type(layer).__name__, finding)))
    try:
        yield finding
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, finding: Finding) -> Callable[[nn.Module, object, object], None]:
    def check(layer: nn.Module, inputs: object, output: object) -> None:
        if finding.what is None and isinstance(output, Tensor) and not torch.isfinite(output).all():
            finding.what = f"the output of layer '{name}' ({type(layer).__name__})"

    return check


@torch.no_grad()
def not_finite(module: nn.Module, gradients: bool = False) -> str | None:
    """The first parameter (or gradient) that is not finite, in the order of the network, or None."""
    tensors = [p.grad if gradients else p for p in module.parameters()]
    norms = torch._foreach_norm([t for t in tensors if t is not None])
    if not norms or torch.isfinite(torch.stack(norms)).all():
        return None
    for name, parameter in module.named_parameters():
        tensor = parameter.grad if gradients else parameter
        if tensor is not None and not torch.isfinite(tensor).all():
            layer = name.rpartition(".")[0] or name
            return f"the {'gradient of' if gradients else 'value of'} '{name}' in layer '{layer}'"
    return None
