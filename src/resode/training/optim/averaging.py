"""Exponential moving average of the parameters, a <- d a + (1 - d) theta (Tarvainen & Valpola 2017).

With d_k = min(d, k / (k + 1)) at update k = 0, 1, ..., as the plain mean of the first updates, so that the
random initial weights have no part in it (arXiv 1703.01780). Only parameters are averaged. The running
statistics of the averaged network are estimated anew, on a fixed seeded subset of the training images, before
it is evaluated or saved (as Izmailov et al. 2018, arXiv 1803.05407).
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resode.mode import mode
from resode.statistics import Statistics

RECALIBRATION = 5120  # images from which statistics are estimated on new time grids


class ParameterAverage:
    """The average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p.detach().clone() for name, p in module.named_parameters()}

    def adopt(self, module: nn.Module, average: Mapping[str, Tensor]) -> None:
        """Go on with another network, of whose parameters this is the average; of others, they themselves."""
        self.parameters = {
            name: average[name].to(p) if name in average else p.detach().clone()
            for name, p in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, iteration: int) -> None:
        """Take in the parameters after optimizer step `iteration` (from 0)."""
        current = [p.detach() for p in module.parameters()]
        weight = max(1 - self.decay, 1 / (iteration + 1))
        torch._foreach_lerp_(list(self.parameters.values()), current, weight)

    @torch.no_grad()
    def apply_to(self, module: nn.Module) -> nn.Module:
        """A copy of `module` with the averaged parameters (its statistics are still those of training)."""
        averaged = copy.deepcopy(module)
        for name, parameter in averaged.named_parameters():
            parameter.copy_(self.parameters[name])
        return averaged


def has_statistics(module: nn.Module) -> bool:
    """Whether a module has running statistics."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


@torch.no_grad()
def estimate_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace all running statistics by the mean over `batches` of inputs, in place.

    The normalisations alone are in training mode: dropout is off, no random number is drawn.

    Args:
        module: any module.
        batches: inputs (N, C, H, W) in batches of equal size.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    of_evaluations = [m for m in module.modules() if isinstance(m, Statistics)]
    with mode(module, training=False):
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative mean
        for own in of_evaluations:
            own.reset()
        for inputs in batches:
            module(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
