"""Activations s, applied elementwise, and the properties that the theorems need.

A `--plugin` adds its own: `ACTIVATIONS["cube"] = Activation(lambda y: y**3, firmly_nonexpansive=False)`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resode.errors import InputError, nearest


@dataclass(frozen=True)
class Activation:
    """An elementwise function s and its properties.

    Args:
        function: s, shape-preserving.
        firmly_nonexpansive: s is non-decreasing with slopes in [0, 1]; the stability bounds require it.
        positive: s(x) >= 0 for every x.
    """

    function: Callable[[Tensor], Tensor]
    firmly_nonexpansive: bool
    positive: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        return self.function(y)

    def inplace(self, y: Tensor) -> Tensor:
        """Compute s(y), overwriting y if s is ReLU; the caller must not need y any more."""
        return F.relu_(y) if self.function is F.relu else self.function(y)


def identity(y: Tensor) -> Tensor:
    """Return y."""
    return y


ACTIVATIONS = {
    "relu": Activation(F.relu, firmly_nonexpansive=True, positive=True),
    "leaky_relu": Activation(F.leaky_relu, firmly_nonexpansive=True),
    "elu": Activation(F.elu, firmly_nonexpansive=True),
    "softplus": Activation(F.softplus, firmly_nonexpansive=True, positive=True),
    "tanh": Activation(torch.tanh, firmly_nonexpansive=True),
    "sigmoid": Activation(torch.sigmoid, firmly_nonexpansive=True, positive=True),
    "identity": Activation(identity, firmly_nonexpansive=True),
    "hardtanh": Activation(F.hardtanh, firmly_nonexpansive=True),
    "relu6": Activation(F.relu6, firmly_nonexpansive=True, positive=True),
    "softsign": Activation(F.softsign, firmly_nonexpansive=True),
    "celu": Activation(F.celu, firmly_nonexpansive=True),
    "silu": Activation(F.silu, firmly_nonexpansive=False),
    "gelu": Activation(F.gelu, firmly_nonexpansive=False),
    "mish": Activation(F.mish, firmly_nonexpansive=False),
    "selu": Activation(F.selu, firmly_nonexpansive=False),
}


def activation(name: str) -> Activation:
    """Look up an activation by name.

    Raises:
        InputError: no such name; the message gives the nearest one.
    """
    if name not in ACTIVATIONS:
        listed = ", ".join(ACTIVATIONS)
        raise InputError(f"unknown activation {name!r}{nearest(str(name), ACTIVATIONS)} ({listed})")
    return ACTIVATIONS[name]
