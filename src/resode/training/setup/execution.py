"""Execution: how the operations of a step are launched: compiled or eager, as a CUDA graph or one by one."""

import hashlib
import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from resode import acceleration, atomic
from resode.blocks import dynamic_blocks
from resode.gradients import Stored
from resode.models.budget import chain_owners, gradient_of
from resode.models.repeated import RepeatedUnits
from resode.models.residual import ResidualNetwork


def compiled(module: nn.Module, backend: str | Callable[..., Any] | None = None) -> nn.Module:
    """The network by torch.compile: as a whole, or in pieces where a backward pass recomputes steps.

    The pieces are each unit, each field at a control node and each block whose states are stored; they are
    compiled in place.
    """
    import torch._dynamo  # takes as long as torch: only for a network that is compiled

    own_compiler_cache()
    backend = backend or acceleration.backend.get()
    blocks = chain_owners(module)
    config = torch._dynamo.config  # units share their code, and each kind and mode of them is a graph
    config.recompile_limit = max(config.recompile_limit, 64)
    if all(isinstance(gradient_of(block), Stored) for block in blocks):
        whole: nn.Module = torch.compile(module, backend=backend, dynamic=False)  # type: ignore[assignment]  # it calls alike
        return whole
    for block in blocks:
        if isinstance(block, RepeatedUnits) or isinstance(gradient_of(block), Stored):
            block.compile(backend=backend, dynamic=False)
            continue
        for unit in block.units() if isinstance(block, ResidualNetwork) else block.controls:
            unit.compile(backend=backend, dynamic=False)
    return module


def own_compiler_cache() -> None:
    """Let torch's compiler keep its code in a folder of this user, unless TORCHINDUCTOR_CACHE_DIR names one.

    Its default is a predictable folder below /tmp, which anybody may have made before. There is one folder
    for each set of instructions: torch would reuse code of another processor, and a home may serve several.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        instructions = repr((torch.backends.cpu.get_cpu_capability(), sorted(known.items())))
        folder = f"inductor-{hashlib.sha256(instructions.encode()).hexdigest()[:12]}"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(atomic.private_folder(folder))


# ---------------------------------------------------------------- CUDA graphs


def wants_cuda_graph(
    module: nn.Module,
    device: torch.device,
    setting: bool | Literal["auto"],
    *,
    processes: int,
    short_of_memory: bool,
) -> bool:
    """Whether the steps of a network run as CUDA graphs.

    Args:
        module: the network.
        device: where it lies.
        setting: of the experiment. `auto`: networks that consist of this library's and torch's modules alone,
            since the Python code of others may differ from step to step (stochastic depth, say), which a
            graph would not see.
        processes: that train together.
        short_of_memory: a graph has memory of its own, so that `auto` means no.
    """
    wanted = is_known(module) and not short_of_memory if setting == "auto" else setting
    return wanted and not cuda_graph_obstacle(module, device, processes)


def cuda_graph_obstacle(module: nn.Module, device: torch.device, processes: int) -> str:
    """Why steps cannot run as CUDA graphs; empty where they can."""
    if device.type != "cuda":
        return "no GPU"
    if processes > 1:
        return f"{processes} processes"
    adaptive = any(not block.evaluations for block in dynamic_blocks(module))
    return "an adaptive solver, which reads values on the host in each step" if adaptive else ""


def is_known(module: nn.Module) -> bool:
    """Whether all modules of a network are this library's or torch's, without hooks."""
    ours = (type(child).__module__.partition(".")[0] in ("resode", "torch") for child in module.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return all(ours) and not any(getattr(child, name) for child in module.modules() for name in hooks)
