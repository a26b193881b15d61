"""Cost: parameters, multiply-adds, and the memory of a training step, counted without computing anything.

    memory of a step = parameters + gradients + what the optimizer keeps + activations

The last (`resode.memory`) is by far the largest. All is counted on tensors that have shapes but no numbers.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from resode import memory
from resode.abstract import Abstract, dtype_of, stand_ins
from resode.memory import Shape
from resode.mode import mode


@dataclass(frozen=True)
class Cost:
    """What a network costs; bytes are those of one training step.

    Args:
        parameters: trainable and fixed.
        multiply_adds: of one image, forward.
        activation_bytes: the peak of what lives for the backward pass, at the given batch size.
        parameter_bytes: the parameters.
        gradient_bytes: one gradient for each trainable parameter.
        optimizer_bytes: what the optimizer keeps for each trainable parameter.
    """

    parameters: int
    multiply_adds: int
    activation_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def training_bytes(self) -> int:
        """The memory of a training step: parameters, gradients, optimizer and activations."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


def estimate(
    module: nn.Module, shape: Shape, batch: int, *, dtype: torch.dtype | None = None, moments: int = 1
) -> Cost:
    """Count the cost of training `module`; its numbers are not touched, and may be on the meta device.

    Args:
        module: any module that takes (N, C, H, W).
        shape: (C, H, W) of one image.
        batch: the batch size.
        dtype: bfloat16 or float16 for a forward pass under autocast; left out, the module's own.
        moments: numbers that the optimizer keeps for a parameter (SGD with momentum 1, AdamW 2).
    """
    own, trainable = parameter_bytes(module)
    return Cost(
        parameters=parameters(module),
        multiply_adds=multiply_adds(module, shape),
        activation_bytes=memory.profile(module, shape, batch, dtype).peak(),
        parameter_bytes=own,
        gradient_bytes=trainable,
        optimizer_bytes=moments * trainable,
    )


def parameter_bytes(module: nn.Module) -> tuple[int, int]:
    """Bytes of all parameters, and of the trainable ones."""
    sizes = [(p.nbytes, p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)


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
    x = torch.empty(batch, *shape, dtype=dtype_of(module), device="meta")
    abstract = Abstract()
    with mode(module, training=False), torch.inference_mode(False), torch.no_grad(), abstract:
        functional_call(module, stand_ins(module, x.device), (x,), tie_weights=False)
    return abstract.flops // 2
