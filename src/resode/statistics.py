"""Running statistics: the buffers of normalisation layers that average the statistics of batches.

A unit of a classical network has its own. A field that is evaluated several times has one set for each
evaluation (`Statistics`), because the states that it normalises differ.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


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
