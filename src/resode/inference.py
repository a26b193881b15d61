"""Inference: a network made ready for it, each BatchNorm folded into the convolution before it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from resode.kernels.inference import program
from resode.kernels.program import Program


class Frozen(nn.Module):
    """A network in evaluation mode, compiled as it is at its first batch; later changes may go unnoticed.

    Under bfloat16 autocast, on a processor that multiplies it, a network that fits becomes a program that
    takes a few images at a time through all of its layers (`resode.kernels.inference`). Another one is
    compiled by torch, which folds what is constant: gamma (W y - mean) / sqrt(var + eps) + beta is one
    convolution. This takes some ten seconds, and each batch of another size than the first one is filled up
    with zeros.

    Args:
        module: (N, C, H, W) -> logits; it is kept, and goes to evaluation mode.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()
        self.programs: dict[torch.Size, Program | None] = {}  # by the shape of an image
        self.compiled: Callable[[Tensor], Tensor] | None = None
        self.size = 0  # of the batch that it is compiled for

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Logits; a batch may be smaller than the first one, or is done in parts."""
        made = self._program(x)
        if made is not None:
            return made(x)
        if self.compiled is None:
            self.compiled = torch.compile(self.module, options={"freezing": True}, dynamic=False)
            self.size = len(x)
        return torch.cat([self._logits(part) for part in x.split(self.size)])

    def _program(self, x: Tensor) -> Program | None:
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if x.device.type != "cpu" or not half or x.dtype not in (torch.float32, torch.bfloat16):
            return None
        if x.shape[1:] not in self.programs:
            self.programs[x.shape[1:]] = program(self.module, x)
        return self.programs[x.shape[1:]]

    def _logits(self, x: Tensor) -> Tensor:
        assert self.compiled is not None
        if len(x) == self.size:
            return self.compiled(x)
        filled = x.new_zeros(self.size, *x.shape[1:]).to(memory_format=torch.channels_last)
        filled[: len(x)] = x
        return self.compiled(filled)[: len(x)]
