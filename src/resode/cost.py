"""Cost: parameters, multiply-adds, and the memory of a training step, counted without computing anything.

    memory of a step = parameters + gradients + what the optimiser keeps + what autograd keeps for backward

The last is by far the largest: one copy of the state per operation that needs it again, in proportion to
depth and batch size. It is counted by a forward pass on fake tensors, which have shapes but no numbers.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from resode.errors import InputError
from resode.mode import mode

Shape = tuple[int, int, int]  # channels, height and width of one image


@dataclass(frozen=True)
class Cost:
    """What a network costs; bytes are those of one training step.

    Args:
        parameters: trainable and fixed.
        multiply_adds: of one image, forward.
        activation_bytes: what autograd keeps for the backward pass at the given batch size.
        parameter_bytes: the parameters.
        gradient_bytes: one gradient for each trainable parameter.
        optimiser_bytes: what the optimiser keeps for each trainable parameter.
    """

    parameters: int
    multiply_adds: int
    activation_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimiser_bytes: int

    @property
    def training_bytes(self) -> int:
        """The memory of a training step: parameters, gradients, optimiser and activations."""
        return self.parameter_bytes + self.gradient_bytes + self.optimiser_bytes + self.activation_bytes


def estimate(
    module: nn.Module, shape: Shape, batch: int, *, dtype: torch.dtype | None = None, moments: int = 1
) -> Cost:
    """Count the cost of training `module`; its numbers are not touched, and may be on the meta device.

    Args:
        module: any module that takes (N, C, H, W).
        shape: (C, H, W) of one image.
        batch: the batch size.
        dtype: bfloat16 or float16 for a forward pass under autocast; left out, the module's own.
        moments: numbers that the optimiser keeps for a parameter (SGD with momentum 1, AdamW 2).
    """
    trainable = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    return Cost(
        parameters=parameters(module),
        multiply_adds=multiply_adds(module, shape),
        activation_bytes=activation_bytes(module, shape, batch, dtype),
        parameter_bytes=sum(p.nbytes for p in module.parameters()),
        gradient_bytes=trainable,
        optimiser_bytes=moments * trainable,
    )


def parameters(module: nn.Module) -> int:
    """The number of parameters, trainable or not; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds(module: nn.Module, shape: Shape) -> int:
    """Multiply-adds of one image (C, H, W) in evaluation mode: convolutions and matrix products.

    Half of PyTorch's floating point operations, which count a multiply-add as two. What a batch costs
    whatever its size, such as kernels that are computed from other numbers, is not an image's.
    """
    return _multiply_adds(module, shape, 2) - _multiply_adds(module, shape, 1)


def _multiply_adds(module: nn.Module, shape: Shape, batch: int) -> int:
    x = torch.empty(batch, *shape, dtype=_dtype(module), device="meta")
    abstract = _Abstract()
    with mode(module, training=False), torch.inference_mode(False), torch.no_grad(), abstract:
        functional_call(module, _stand_ins(module, x.device), (x,))
    return abstract.flops // 2


def activation_bytes(module: nn.Module, shape: Shape, batch: int, dtype: torch.dtype | None = None) -> int:
    """Bytes that autograd keeps from the forward to the backward pass of one training step.

    Each storage counts once, whatever saves it; parameters and buffers do not count, but the copies of
    parameters that autocast makes do.

    Args:
        module: any module that takes (N, C, H, W).
        shape: (C, H, W) of one image.
        batch: the number of images.
        dtype: bfloat16 or float16 for a forward pass under autocast; left out, the module's own.
    """
    saved: dict[int, Tensor] = {}  # by storage; held, so that no storage is counted for another

    def keep(tensor: Tensor) -> Tensor:
        saved.setdefault(_storage(tensor), tensor)
        return tensor

    own = _dtype(module)
    if dtype not in (None, own, torch.bfloat16, torch.float16):
        raise InputError(f"activation_bytes of {dtype}: autocast takes bfloat16 or float16")
    autocast = torch.autocast("cpu", dtype, enabled=dtype not in (None, own))
    with FakeTensorMode(allow_non_fake_inputs=True), _Abstract(), mode(module, training=True), autocast:
        stand_ins = _stand_ins(module, torch.device("cpu"))
        x = torch.empty(batch, *shape, dtype=own)
        with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
            functional_call(module, stand_ins, (x,))
    state = {_storage(tensor) for tensor in stand_ins.values()}
    return sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in state)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float32)


def _stand_ins(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Tensors without numbers for all parameters and buffers of a module; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        made[id(tensor)] = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
        ).requires_grad_(tensor.requires_grad)
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: made[id(tensor)] for name, tensor in named}


class _Description(NamedTuple):
    """What is known of a tensor without its numbers."""

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


class _Abstract(TorchDispatchMode):
    """Counts floating point operations, and recalls the shapes that an operation gave before.

    To find the shapes of a result takes a millisecond an operation, and a deep network repeats a few
    operations a thousand times. Operations that write or alias their arguments are not recalled.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
