"""Operations: what a network does between its layers, seen in one forward pass.

A sum u + F(u), an activation or a pooling may be a module or a line of a forward; the operators that PyTorch
runs tell both. Inside of a twist and of a norm nothing is counted; inside of a dynamic block no sums are, for
they are its scheme's.
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


def operations(model: nn.Module, shape: Shape) -> Counter[str]:
    """How often each activation, pooling and sum of two states is made for one image.

    Args:
        model: any network; it is left as it is.
        shape: (C, H, W) of an image.

    Returns:
        `SUM`, `MEAN`, `MAXIMUM`, `GLOBAL` and the names of activations, each with its number.
    """
    like = next(model.parameters(), torch.empty(0))
    seen = _Seen()
    blocks = {
        block: block.function_evaluations for block in model.modules() if isinstance(block, DynamicBlock)
    }
    hooks = [hook for module in model.modules() for hook in seen.watch(module)]
    try:
        with mode(model, training=False), torch.no_grad(), seen:
            model(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    finally:
        for hook in hooks:
            hook.remove()
        for block, evaluations in blocks.items():
            block.function_evaluations = evaluations
    return seen.counts


class _Seen(TorchDispatchMode):
    """Counts operators, but those inside of the layers and the blocks that it watches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types
        self.counts: Counter[str] = Counter()
        self.inside: Counter[type] = Counter()

    def watch(self, module: nn.Module) -> list[Any]:
        """Hooks that tell when a forward is inside of a layer or a block."""
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
            found = _operation(operator.removesuffix("_"), args)
            if found is not None and not (found == SUM and self.inside[DynamicBlock]):
                self.counts[found] += 1
        return func(*args, **(kwargs or {}))


def _operation(operator: str, args: tuple[Any, ...]) -> str | None:
    """What an operator on a state (N, C, H, W) is counted as."""
    if operator == "add" and isinstance(args[1], Tensor) and args[1].shape == args[0].shape:
        return SUM
    if operator == "mean" and len(args) > 1 and {axis % 4 for axis in args[1] or ()} == {2, 3}:
        return GLOBAL
    return ACTIVATIONS.get(operator) or POOLINGS.get(operator)
