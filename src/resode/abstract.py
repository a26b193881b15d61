"""Abstract execution: run a module on tensors that have shapes but no data, to count what it does."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a module's parameters."""
    return next((p.dtype for p in module.parameters()), torch.float32)


def empty_tensors(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Uninitialised tensors with the shapes and strides of a module's parameters and buffers, by name.

    Shared tensors stay shared. A submodule that is registered twice appears under one of its names:
    `functional_call` would not restore it otherwise.
    """
    made: dict[int, Tensor] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        made[id(tensor)] = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
        ).requires_grad_(tensor.requires_grad)
    return {
        f"{path}.{name}" if path else name: made[id(tensor)]
        for path, child in module.named_modules()
        for name, tensor in (*child._parameters.items(), *child._buffers.items())
        if tensor is not None
    }


class _Description(NamedTuple):
    """The metadata of a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Description(value.shape, value.stride(), value.dtype, value.device)
    if isinstance(value, (list, tuple)):
        return tuple(map(_describe, value))
    return value


def _recall(value: Any) -> Any:
    if isinstance(value, _Description):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device=value.device)
    return tuple(map(_recall, value)) if isinstance(value, tuple) else value


class AbstractMode(TorchDispatchMode):
    """Counts floating point operations, and caches the result shapes of operations.

    Inferring the shapes of a result takes a millisecond per operation, and a deep network repeats a few
    operations a thousand times. Operations that write or alias their arguments are not cached.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types
        self.flops = 0
        self.known: dict[Any, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable or any(value.alias_info for value in func._schema.returns):
            return func(*args, **kwargs)
        key = func, _describe(args), _describe(tuple(kwargs.items()))
        if key in self.known:
            described, flops = self.known[key]
            self.flops += flops
            return _recall(described)
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        flops = int(count(*args, **kwargs, out_val=result)) if count else 0
        self.known[key] = _describe(result), flops
        self.flops += flops
        return result
