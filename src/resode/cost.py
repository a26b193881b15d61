"""Cost: parameters, multiply-adds, and the memory of a training step, counted without computing anything.

    memory of a step = parameters + gradients + optimizer state + activations

Activations (`resode.memory`) are by far the largest term. All is counted on tensors that have shapes but no
data.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from resode import memory
from resode.abstract import AbstractMode, dtype_of, empty_tensors
from resode.inputs import check_shape
from resode.memory import Shape
from resode.mode import mode


@dataclass(frozen=True)
class Cost:
    """The cost of a network; bytes are those of one training step.

    Args:
        parameters: the number of parameters, trainable or frozen.
        multiply_adds: the multiply-adds of the forward pass of one image.
        activation_bytes: the peak of what is alive for the backward pass, at the given batch size.
        parameter_bytes: bytes of the parameters.
        gradient_bytes: bytes of the gradients of trainable parameters.
        optimizer_bytes: bytes of the optimizer state of trainable parameters.
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
    """Count the cost of training a module, which is not changed and may be on the meta device.

    Args:
        module: any module that takes (N, C, H, W).
        shape: (C, H, W) of one image.
        batch: the batch size.
        dtype: bfloat16 or float16 for a forward pass under autocast (default: the module's own dtype).
        moments: moments that the optimizer keeps for each parameter (SGD with momentum 1, AdamW 2).

    Raises:
        InputError: a shape that is not (C, H, W).
    """
    check_shape(shape)
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
    """Bytes of all parameters and of the trainable ones."""
    sizes = [(p.nbytes, p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)


def parameters(module: nn.Module) -> int:
    """The number of parameters, trainable or frozen; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds(module: nn.Module, shape: Shape) -> int:
    """Multiply-adds of one image (C, H, W) in evaluation mode: convolutions and matrix products.

    Half of PyTorch's floating point operations, which count a multiply-add as two. What a batch of any size
    costs once, such as computing kernels from coefficients, is not counted.
    """
    return _multiply_adds(module, shape, 2) - _multiply_adds(module, shape, 1)


def _multiply_adds(module: nn.Module, shape: Shape, batch: int) -> int:
    x = torch.empty(batch, *shape, dtype=dtype_of(module), device="meta")
    counting = AbstractMode()
    with mode(module, training=False), torch.inference_mode(False), torch.no_grad(), counting:
        functional_call(module, empty_tensors(module, x.device), (x,), tie_weights=False)
    return counting.flops // 2
