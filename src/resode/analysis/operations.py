"""Counts sums, activations and poolings in one forward pass of a network.

A sum u + F(u), an activation or a pooling can be a module or a line of a forward; both run the same PyTorch
operators, which are counted. Operators inside a twist or a norm are ignored, and so are sums inside a dynamic
block, as they belong to its scheme.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from resode.blocks import DynamicBlock
from resode.fields.norms import TvNorm2d
from resode.memory import Shape
from resode.mode import mode
from resode.operators.twist import TwistConv2d

ACTIVATIONS: Mapping[str, str] = {
    "relu": "ReLU",
    "leaky_relu": "leaky ReLU",
    "elu": "ELU",
    "softplus": "softplus",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "hardtanh": "hardtanh",
    "silu": "SiLU",
    "gelu": "GELU",
    "mish": "Mish",
    "_prelu_kernel": "PReLU",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
}
SUM, MEAN, MAXIMUM, GLOBAL = "sum", "local mean", "local maximum", "global mean"
POOLINGS: Mapping[str, str] = {
    "avg_pool2d": MEAN,
    "_adaptive_avg_pool2d": MEAN,
    "max_pool2d": MAXIMUM,
    "max_pool2d_with_indices": MAXIMUM,
}
LAYERS = (TwistConv2d, _NormBase, nn.GroupNorm, nn.LayerNorm, TvNorm2d)


def count_operations(model: nn.Module, shape: Shape) -> Counter[str]:
    """Count the activations, poolings and sums of two states for one image.

    Args:
        model: any network; it is not changed.
        shape: (C, H, W) of an image.

    Returns:
        Counts of `SUM`, `MEAN`, `MAXIMUM`, `GLOBAL` and of the names of activations.
    """
    like = next(model.parameters(), torch.empty(0))
    counter = _OperatorCounter()
    blocks = {
        block: block.function_evaluations for block in model.modules() if isinstance(block, DynamicBlock)
    }
    hooks = [hook for module in model.modules() for hook in counter.watch(module)]
    try:
        with mode(model, training=False), torch.no_grad(), counter:
            model(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    finally:
        for hook in hooks:
            hook.remove()
        for block, evaluations in blocks.items():
            block.function_evaluations = evaluations
    return counter.counts


class _OperatorCounter(TorchDispatchMode):
    """Counts operators except those inside watched layers and blocks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types
        self.counts: Counter[str] = Counter()
        self.inside: Counter[type] = Counter()

    def watch(self, module: nn.Module) -> list[Any]:
        """Register hooks that record when the forward pass is inside a layer or a block."""
        kind = DynamicBlock if isinstance(module, DynamicBlock) else nn.Module
        if kind is nn.Module and not isinstance(module, LAYERS):
            return []

        def enter(*_: Any) -> None:
            self.inside[kind] += 1

        def leave(*_: Any) -> None:
            self.inside[kind] -= 1

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.inside[nn.Module] and args and isinstance(args[0], Tensor) and args[0].ndim == 4:
            operator = func.overloadpacket.__name__
            operation = _operation(operator.removesuffix("_"), args)
            if operation is not None and not (operation == SUM and self.inside[DynamicBlock]):
                self.counts[operation] += 1
        return func(*args, **(kwargs or {}))


def _operation(operator: str, args: tuple[Any, ...]) -> str | None:
    """The operation of a PyTorch operator on a state (N, C, H, W), or None."""
    if operator == "add" and isinstance(args[1], Tensor) and args[1].shape == args[0].shape:
        return SUM
    if operator == "mean" and len(args) > 1 and {axis % 4 for axis in args[1] or ()} == {2, 3}:
        return GLOBAL
    return ACTIVATIONS.get(operator) or POOLINGS.get(operator)
