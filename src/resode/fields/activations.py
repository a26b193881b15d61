"""Activations s, applied elementwise, and the properties that the theorems need.

One of your own is a function that returns it:

@activations.register("cube")
def cube() -> Activation:
return Activation(lambda y: y**3, firmly_nonexpansive=False)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from resode.registry import Registry


@dataclass(frozen=True)
class Activation:
    """An elementwise function s and its properties.

    Args:
        function: s, shape-preserving.
        firmly_nonexpansive: s is non-decreasing with slopes in [0, 1]; the stability bounds require it.
        positive: s(x) >= 0 for every x.
        smooth: s has continuous derivatives of every order; an integrator keeps its order only then.
    """

    function: Callable[[Tensor], Tensor]
    firmly_nonexpansive: bool
    positive: bool = False
    smooth: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        return self.function(y)

    def inplace(self, y: Tensor) -> Tensor:
        """Compute s(y), overwriting y if s is ReLU; the caller must not need y any more."""
        return F.relu_(y) if self.function is F.relu else self.function(y)


def identity(y: Tensor) -> Tensor:
    """Return y."""
    return y


activations: Registry[Activation] = Registry("activation", "")

# name, s, firmly nonexpansive, positive, smooth
_BUILT_IN: tuple[tuple[str, Callable[[Tensor], Tensor], bool, bool, bool], ...] = (
    ("relu", F.relu, True, True, False),
    ("leaky_relu", F.leaky_relu, True, False, False),
    ("elu", F.elu, True, False, False),
    ("softplus", F.softplus, True, True, True),
    ("tanh", torch.tanh, True, False, True),
    ("sigmoid", torch.sigmoid, True, True, True),
    ("identity", identity, True, False, True),
    ("hardtanh", F.hardtanh, True, False, False),
    ("relu6", F.relu6, True, True, False),
    ("softsign", F.softsign, True, False, False),
    ("celu", F.celu, True, False, False),
    ("silu", F.silu, False, False, True),
    ("gelu", F.gelu, False, False, True),
    ("mish", F.mish, False, False, True),
    ("selu", F.selu, False, False, False),
)
for _name, _function, _nonexpansive, _positive, _smooth in _BUILT_IN:
    activations.register(_name)(partial(Activation, _function, _nonexpansive, _positive, _smooth))


def activation(name: str) -> Activation:
    """Look up an activation by name.

    Raises:
        InputError: no such name; the message gives the nearest one.
    """
    return activations.build(name)
