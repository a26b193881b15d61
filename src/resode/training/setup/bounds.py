"""Bounds: parameters clamped to |p| <= b after each optimizer step, with a bound for each kind.

controls        every parameter of theta(t)
convolutions    weights and biases of convolutions
norms           scales of normalisations
linear          weights of linear layers
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from resode.controls import controls_of
from resode.fields import Convolution
from resode.fields.norms import is_norm
from resode.training.recipe.network import Box


def _controls(network: nn.Module) -> Iterable[Tensor]:
    return (p for controls in controls_of(network) for p in controls.parameters())


def _convolutions(network: nn.Module) -> Iterable[Tensor]:
    return _named(network, lambda module: isinstance(module, _ConvNd | Convolution), ("weight", "bias"))


def _norms(network: nn.Module) -> Iterable[Tensor]:
    return _named(network, is_norm, ("weight",))


def _linear(network: nn.Module) -> Iterable[Tensor]:
    return _named(network, lambda module: isinstance(module, nn.Linear), ("weight",))


def _named(
    network: nn.Module, belongs: Callable[[nn.Module], bool], names: tuple[str, ...]
) -> Iterable[Tensor]:
    """The parameters of these names of the modules that belong to a kind."""
    for module in filter(belongs, network.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if name in names:
                yield parameter


_KINDS: Mapping[str, Callable[[nn.Module], Iterable[Tensor]]] = {
    "controls": _controls,
    "convolutions": _convolutions,
    "norms": _norms,
    "linear": _linear,
}


def bounded(network: nn.Module, box: Box) -> dict[str, tuple[float, list[Tensor]]]:
    """Each kind that has a bound, with the bound and the parameters of a network."""
    bounds = {kind: getattr(box, kind) for kind in _KINDS}
    return {kind: (b, list(_KINDS[kind](network))) for kind, b in bounds.items() if b is not None}


def without_parameters(network: nn.Module, box: Box) -> list[str]:
    """The kinds that have a bound, but no parameters in a network."""
    return [kind for kind, (_, parameters) in bounded(network, box).items() if not parameters]


@torch.no_grad()
def clamp(network: nn.Module, box: Box) -> None:
    """Clamp the parameters of a network to their bounds.

    Args:
        network: any module; changed in place.
        box: the bounds.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> clamp(net, Box(linear=1e-3))
        >>> bool(net.weight.abs().max() <= 1e-3)
        True
    """
    for bound, parameters in bounded(network, box).values():
        for parameter in parameters:
            parameter.clamp_(-bound, bound)
