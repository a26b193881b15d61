"""Exponential moving average of the parameters, a <- decay a + (1 - decay) theta (Polyak & Juditsky 1992).

Only parameters are averaged. The running statistics of the averaged network are estimated anew on a fixed
seeded subset of the training images before it is evaluated or saved.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ParameterAverage:
    """The average of a module's parameters; it starts at their present values."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step of the average."""
        current = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(list(self.parameters.values()), current, 1 - self.decay)

    @torch.no_grad()
    def apply_to(self, module: nn.Module) -> nn.Module:
        """A copy of `module` with the averaged parameters (its statistics are still those of training)."""
        averaged = copy.deepcopy(module)
        for name, parameter in averaged.named_parameters():
            parameter.copy_(self.parameters[name])
        return averaged


@torch.no_grad()
def estimate_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace all running statistics by the mean over `batches` of inputs, in place."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    training = module.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean
    module.train()
    for inputs in batches:
        module(inputs)
    module.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
