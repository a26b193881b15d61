"""Exponential moving average (EMA) of the parameters: a <- d_k a + (1 - d_k) theta at update k = 0, 1, ...

With d_k = min(d, k / (k + 1)) the first updates are averaged with equal weights, so that the random initial
weights do not contribute (Tarvainen & Valpola 2017, arXiv 1703.01780). Only parameters are averaged; running
statistics are estimated on a fixed seeded subset of the training images before the averaged network is
evaluated or saved (Izmailov et al. 2018, arXiv 1803.05407).
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ParameterAverage:
    """The exponential moving average of a module's parameters.

    Args:
        module: whose parameters are averaged.
        decay: d, at least 0 and below 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p.detach().clone() for name, p in module.named_parameters()}

    def adopt(self, module: nn.Module, average: Mapping[str, Tensor]) -> None:
        """Continue with a changed network; a parameter that `average` does not name starts from itself."""
        self.parameters = {
            name: average[name].to(p) if name in average else p.detach().clone()
            for name, p in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, iteration: int) -> None:
        """Update the average after optimizer step `iteration` = 0, 1, ..."""
        current = [p.detach() for p in module.parameters()]
        weight = max(1 - self.decay, 1 / (iteration + 1))
        torch._foreach_lerp_(list(self.parameters.values()), current, weight)

    @torch.no_grad()
    def apply_to(self, module: nn.Module) -> nn.Module:
        """A copy of `module` with the averaged parameters, and the running statistics of `module`."""
        averaged = copy.deepcopy(module)
        for name, parameter in averaged.named_parameters():
            parameter.copy_(self.parameters[name])
        return averaged
