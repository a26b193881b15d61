"""Optimizers: SGD, AdamW and Muon over the parameters of a module, and their state.

State is stored by parameter name (`momentum_buffer/layer1.0.conv1.weight`), not by position. The state that
belongs to a weights file `net.safetensors` is `net.optimizer.safetensors`, which holds the weights' SHA-256.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from resode import atomic, weights
from resode.errors import InputError, IntegrityError
from resode.fields.norms import is_norm
from resode.training.optim import muon
from resode.training.recipe.optimizer import SGD, AdamW, Muon, Optimizer


def build(module: nn.Module, section: Optimizer) -> torch.optim.Optimizer:
    """Build the optimizer of `section` over the trainable parameters of `module`.

    With `decay_norms: false`, vectors and scalars (biases, scales of normalisations) have no weight decay;
    `decay_biases` decides about those that belong to no normalisation.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if isinstance(section, Muon):
        return _muon(trainable, section)
    decays = _decays(module, section)
    decayed, free = ([p for p in trainable if decays(p) is decay] for decay in (True, False))
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, section.weight_decay), (free, 0.0))
        if params
    ]
    if isinstance(section, SGD):
        optimizer = torch.optim.SGD(
            groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov, fused=True
        )
        if section.momentum:  # v = 0 now: a parameter may get its first gradient later than others
            for parameter in trainable:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, fused=True)


def _decays(module: nn.Module, section: SGD | AdamW) -> Callable[[Tensor], bool]:
    """Which parameters have weight decay."""
    biases = section.decay_norms if section.decay_biases is None else section.decay_biases
    norms = filter(is_norm, module.modules())
    of_norms = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    return lambda p: p.ndim > 1 or (section.decay_norms if id(p) in of_norms else biases)


def _muon(trainable: list[nn.Parameter], section: Muon) -> muon.Muon:
    """Muon for parameters of three or more dimensions (kernels), SGD for the others, rates in proportion."""
    groups = [
        {
            "params": [p for p in trainable if (p.ndim > 2) is kernels],
            "kernels": kernels, "scale": rule.lr / section.lr, "lr": rule.lr, "momentum": rule.momentum,
            "nesterov": rule.nesterov, "weight_decay": rule.weight_decay,
        }
        for kernels, rule in ((True, section), (False, section.others))
    ]  # fmt: skip
    return muon.Muon(group for group in groups if group["params"])


def moments(section: Optimizer) -> tuple[str, ...]:
    """Names of the state tensors that an optimizer keeps for each parameter, of the parameter's size."""
    match section:
        case SGD(momentum=0.0):
            return ()
        case AdamW():
            return "exp_avg", "exp_avg_sq"
        case _:
            return ("momentum_buffer",)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr`, times the group's `scale` if it has one."""
    for group in optimizer.param_groups:
        own = lr * group.get("scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def keep_learning_rates(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Move the learning rate of every group to the device, from where a CUDA graph of the step reads it."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = True
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps run uncaptured


def state_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the optimizer's state as (`<state>/<parameter>`, tensor)."""
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                yield f"{key}/{name}", torch.as_tensor(value)


def load_state_tensors(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Restore the state that `state_tensors` gave, in the memory format of each parameter."""
    parameters = dict(module.named_parameters())
    for path, value in tensors.items():
        key, _, name = path.partition("/")
        parameter = parameters[name]
        if key == "step":  # a count, on the device where the fused optimizer expects it
            optimizer.state[parameter][key] = value.to(parameter.device)
        else:
            optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(value)


def carry_state(
    old: Mapping[str, Tensor], carry: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Carry an optimizer's state over to a changed network (regridded, twisted).

    Args:
        old: `<state>/<parameter>` -> tensor, as `state_tensors` gives it.
        carry: maps tensors by the old network's parameter names to tensors by the new one's.
    """
    by_key: dict[str, dict[str, Tensor]] = {}
    for path, tensor in old.items():
        key, _, name = path.partition("/")
        by_key.setdefault(key, {})[name] = tensor
    return {f"{key}/{name}": t for key, group in by_key.items() for name, t in carry(group).items()}


# ---------------------------------------------------------------- the file beside a weights file


def state_file(path: Path) -> Path:
    """The path of the optimizer's state that belongs to a weights file."""
    return path.with_suffix(".optimizer.safetensors")


def write_state(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write the optimizer's state that belongs to a weights file; returns its path."""
    data = to_bytes(
        {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()},
        metadata={_WEIGHTS: atomic.sha256(path)},
    )

    def put(temporary: Path) -> None:
        temporary.write_bytes(data)

    atomic.write(state_file(path), put)
    return state_file(path)


def read_state(
    path: Path, module: nn.Module, section: Optimizer, fresh: Collection[str] = ()
) -> dict[str, Tensor]:
    """Read the optimizer's state that belongs to a weights file.

    Args:
        path: the weights file.
        module: the network that holds the weights.
        section: the optimizer that takes the state.
        fresh: parameters that are new; their state is zero.

    Raises:
        InputError: there is no state, or it does not fit the weights, the optimizer or the network.
        IntegrityError: the file is corrupt.
    """
    file = state_file(path)
    if not file.is_file():
        raise InputError(
            f"{file}: no such file (`resode regrid` writes it for a run with checkpoints); "
            "set init.optimizer=false to start without momentum"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            owner = (opened.metadata() or {}).get(_WEIGHTS)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise IntegrityError(f"{file}: is not a valid safetensors file ({error})") from None
    if owner != atomic.sha256(path):
        raise InputError(f"{file}: belongs to other weights than {path}; write both again with one command")
    for entry, tensor in tensors.items():
        key, _, name = entry.partition("/")
        if name in fresh:
            tensors[entry] = tensor.new_zeros(() if key == "step" else module.get_parameter(name).shape)
    _refuse_misfit(file, tensors, module, section)
    return tensors


_WEIGHTS = "weights_sha256"


def _refuse_misfit(file: Path, tensors: Mapping[str, Tensor], module: nn.Module, section: Optimizer) -> None:
    kept = sorted(moments(section))
    if isinstance(section, AdamW):
        kept.append("step")
    found = sorted({name.partition("/")[0] for name in tensors})
    if found != kept:
        wanted = ", ".join(kept) or "no state"
        raise InputError(
            f"{file}: holds {', '.join(found)}, but {section.name} keeps {wanted}: "
            "train with the optimizer of the run it comes from, or set init.optimizer=false"
        )
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    own = {
        f"{key}/{name}": p.new_zeros(()) if key == "step" else p.detach()
        for key in kept
        for name, p in trainable
    }
    mistakes = weights.mismatches(own, tensors)
    if mistakes:
        raise InputError(f"{file}: does not fit the network: {weights.few(mistakes)}")
