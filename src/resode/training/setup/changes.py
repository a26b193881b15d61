"""Changes of a network on the way: finer time grids (`refine`), and a twist (`twist`).

Training goes on with another network, equal to the old one at first up to the coarser grids' error. What
belongs to a parameter (the optimizer's state, averages) is carried over; of new numbers it is zero.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from resode.errors import InputError
from resode.models import DynamicNet, regrid, twist
from resode.training.recipe.experiment import Refinement, Twisting

Carry = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def changed(module: nn.Module, change: Refinement | Twisting) -> tuple[nn.Module, Carry]:
    """The network after a change, and how tensors by parameter names come over.

    Raises:
        InputError: it cannot be changed so; the message begins with the recipe's key.
    """
    if isinstance(change, Refinement):
        if not isinstance(module, DynamicNet):
            raise InputError("refine: only a DynamicNet can go to finer time grids; leave it out")
        regridding = regrid(module, states=change.states, controls=change.controls)
        return regridding.module, regridding.transfer
    try:
        made = twist(module, change.where or None, **change.options())
    except InputError as error:
        raise InputError(*(f"twist: {line.removeprefix('twist: ')}" for line in error.messages)) from None
    return made, with_zeros(made)


def with_zeros(module: nn.Module) -> Carry:
    """Carries tensors to a network with further parameters, to which they are zero."""

    def carry(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        scalar = all(tensor.ndim == 0 for tensor in tensors.values())  # such as numbers of steps
        return {
            name: tensors[name] if name in tensors else torch.zeros(() if scalar else p.shape).to(p)
            for name, p in module.named_parameters()
            if p.requires_grad or name in tensors
        }

    return carry
