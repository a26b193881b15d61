"""Activations s, each acting on every number by itself, and what the theorems have to know of them.

A `--plugin` adds one of its own: `ACTIVATIONS["cube"] = Activation(lambda y: y**3, gentle=False)`.

`gentle`: s is non-decreasing with slopes in [0, 1], the condition of the stability bounds.
`positive`: s(x) >= 0 everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resode.errors import InputError, nearest


@dataclass(frozen=True)
class Activation:
    """A function of every number by itself, and what is known of it."""

    function: Callable[[Tensor], Tensor]
    gentle: bool
    positive: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        return self.function(y)

    def over(self, y: Tensor) -> Tensor:
        """s(y), in the memory of y where that can be: y is needed no more."""
        return F.relu_(y) if self.function is F.relu else self.function(y)


def identity(y: Tensor) -> Tensor:
    """Y itself."""
    return y


ACTIVATIONS = {
    "relu": Activation(F.relu, gentle=True, positive=True),
    "leaky_relu": Activation(F.leaky_relu, gentle=True),
    "elu": Activation(F.elu, gentle=True),
    "softplus": Activation(F.softplus, gentle=True, positive=True),
    "tanh": Activation(torch.tanh, gentle=True),
    "sigmoid": Activation(torch.sigmoid, gentle=True, positive=True),
    "identity": Activation(identity, gentle=True),
    "hardtanh": Activation(F.hardtanh, gentle=True),
    "relu6": Activation(F.relu6, gentle=True, positive=True),
    "softsign": Activation(F.softsign, gentle=True),
    "celu": Activation(F.celu, gentle=True),
    "silu": Activation(F.silu, gentle=False),
    "gelu": Activation(F.gelu, gentle=False),
    "mish": Activation(F.mish, gentle=False),
    "selu": Activation(F.selu, gentle=False),
}


def activation(name: str) -> Activation:
    """The activation of a name (`InputError` with the nearest where there is none)."""
    if name not in ACTIVATIONS:
        listed = ", ".join(ACTIVATIONS)
        raise InputError(f"unknown activation {name!r}{nearest(str(name), ACTIVATIONS)} ({listed})")
    return ACTIVATIONS[name]
