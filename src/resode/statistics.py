"""Running statistics: the buffers of normalisation layers that average the statistics of batches.

A unit of a classical network has its own. A field that is evaluated several times has one set for each
evaluation (`Statistics`), because the states that it normalises differ.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from resode.errors import InputError
from resode.mode import mode

RECALIBRATION = 5120  # images on which statistics are estimated after a change of time grids


def running_statistics(node: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a field's normalisation layers, by name; its other buffers are constants."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in node.named_modules()
        if has_running_statistics(module)
        for name, buffer in module.named_buffers(recurse=False)
    }


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer that tracks running statistics."""
    return isinstance(module, _NormBase) and module.track_running_stats


class Statistics(nn.Module):
    """The running statistics of a field at one evaluation, under the field's own buffer names."""

    def __init__(self, buffers: Mapping[str, Tensor]) -> None:
        super().__init__()
        for path, tensor in buffers.items():
            *parents, name = path.split(".")
            holder: nn.Module = self
            for parent in parents:
                if parent not in dict(holder.named_children()):
                    holder.add_module(parent, nn.Module())
                holder = holder.get_submodule(parent)
            holder.register_buffer(name, tensor.detach().clone())

    def tensors(self, copies: bool = False) -> dict[str, Tensor]:
        """The buffers by name, or copies of them that may be overwritten."""
        return {name: t.clone() if copies else t for name, t in self.named_buffers()}

    @torch.no_grad()
    def reset(self) -> None:
        """Reset to initial values: means and counts 0, variances 1."""
        for name, tensor in self.named_buffers():
            tensor.fill_(1 if name.endswith("running_var") else 0)


def has_statistics(module: nn.Module) -> bool:
    """Whether a module has batch normalisations with running statistics."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


@torch.no_grad()
def estimate_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Re-estimate all running statistics of a module, in place, as their mean over batches.

    Only batch normalisations are in training mode: dropout is off and no random number is drawn.

    Args:
        module: any module.
        batches: inputs (N, C, H, W) in batches of equal size.

    Raises:
        InputError: a batch has a single value of a channel, which has no variance.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    per_evaluation = [m for m in module.modules() if isinstance(m, Statistics)]
    with mode(module, training=False):
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean
        for statistics in per_evaluation:
            statistics.reset()
        for inputs in batches:
            try:
                module(inputs)
            except ValueError as error:
                if len(inputs) > 1:
                    raise
                raise InputError(
                    f"statistics of normalisations cannot be estimated on a single image: {error}; give more"
                ) from None
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
