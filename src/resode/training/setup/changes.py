"""Changes of a network during training: finer time grids (`refine`) and twisted convolutions (`twist`).

Training goes on with another network. Its function is the same at first, up to the error of the coarser
grids. What belongs to a parameter (the optimizer's state, averages) is transferred; new parameters get zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resode.errors import InputError
from resode.models import DynamicNet, twist
from resode.models.regridding import regridding
from resode.training.recipe.network import Refinement, Twisting

Change = Refinement | Twisting
Transfer = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Changed:
    """A network after a change.

    Args:
        module: the new network.
        transfer: maps tensors by the old parameter names to tensors by the new ones.
        description: for the user, in a few words.
        new_statistics: whether running statistics have to be estimated again.
    """

    module: nn.Module
    transfer: Transfer
    description: str
    new_statistics: bool = False


def changed(module: nn.Module, change: Change) -> Changed:
    """Apply a change of the experiment to a network, which stays as it is.

    Raises:
        InputError: the change does not fit the network; the message begins with the recipe's key.
    """
    if isinstance(change, Refinement):
        if not isinstance(module, DynamicNet):
            raise InputError("refine: needs a DynamicNet, which has time grids; remove it")
        finer = regridding(module, states=change.states, controls=change.controls)
        return Changed(finer.module, finer.transfer, "finer time grids", new_statistics=True)
    try:
        made = twist(module, change.where or None, **change.options())
    except InputError as error:
        raise InputError(*(f"twist: {line.removeprefix('twist: ')}" for line in error.messages)) from None
    return Changed(made, zero_extended(made), f"twisted ({change.tie})")


def zero_extended(module: nn.Module) -> Transfer:
    """A transfer to a network with further parameters, for which it gives zeros."""

    def transfer(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        scalar = all(tensor.ndim == 0 for tensor in tensors.values())  # such as Adam's step counts
        return {
            name: tensors[name] if name in tensors else torch.zeros(() if scalar else p.shape).to(p)
            for name, p in module.named_parameters()
            if p.requires_grad or name in tensors
        }

    return transfer
