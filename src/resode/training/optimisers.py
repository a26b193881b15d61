"""Optimisers: SGD and AdamW over the parameters of a module, one group per weight decay.

Their state travels by parameter name (`momentum_buffer/layer1.0.conv1.weight`), never by position.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from resode.training.experiment import SGD, Optimizer


def build(module: nn.Module, section: Optimizer) -> torch.optim.Optimizer:
    """The optimiser of `section` over the trainable parameters of `module`.

    With `decay_norms: false`, vectors and scalars (norm scales, biases) are not decayed.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if section.decay_norms or p.ndim > 1]
    free = [p for p in trainable if not (section.decay_norms or p.ndim > 1)]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, section.weight_decay), (free, 0.0))
        if params
    ]
    if isinstance(section, SGD):
        optimiser = torch.optim.SGD(
            groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov, fused=True
        )
        if section.momentum:  # v = 0 from the start: a parameter may get its first gradient later than others
            for parameter in trainable:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimiser
    return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = lr


def state_tensors(optimiser: torch.optim.Optimizer, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The optimiser's state as `<state>/<parameter>` -> tensor."""
    for name, parameter in module.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            if value is not None:
                yield f"{key}/{name}", torch.as_tensor(value)


def load_state_tensors(
    optimiser: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `state_tensors` gave, each tensor into the memory format of its own parameter."""
    parameters = dict(module.named_parameters())
    for path, value in tensors.items():
        key, _, name = path.partition("/")
        parameter = parameters[name]
        if key == "step":  # a count, where the fused optimiser expects it
            optimiser.state[parameter][key] = value.to(parameter.device)
        else:
            optimiser.state[parameter][key] = torch.empty_like(parameter).copy_(value)
