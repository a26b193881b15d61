"""Frozen: a network compiled for inference at its first batch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from resode import acceleration
from resode.training.setup.execution import own_compiler_cache


class Frozen(nn.Module):
    """A network in evaluation mode, compiled for inference at its first batch.

    Under bfloat16 autocast on a CPU, a network that the registered inference program supports
    (`acceleration.program`) runs as such a program: a few images at a time pass through all layers. Any other
    is compiled by torch with constants folded: gamma (W y - mean) / sqrt(var + eps) + beta becomes one
    convolution.
    This takes about ten seconds. The compiled batch size is that of the first batch: smaller batches are
    padded with zeros, larger ones are split.

    Args:
        module: (N, C, H, W) -> logits. It is kept and switched to evaluation mode; changes of its weights
            after the first batch may have no effect.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()
        self.programs: dict[torch.Size, Callable[[Tensor], Tensor] | None] = {}  # by image shape
        self.compiled: Callable[[Tensor], Tensor] | None = None
        self.size = 0  # the batch size that `compiled` takes

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, C, H, W), for any N."""
        program = self._program(x)
        if program is not None:
            return program(x)
        if self.compiled is None:
            own_compiler_cache()
            self.compiled = torch.compile(self.module, options={"freezing": True}, dynamic=False)
            self.size = len(x)
        return torch.cat([self._logits(part) for part in x.split(self.size)])

    def _program(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The inference program for images like x, built at the first batch of their size."""
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if x.device.type != "cpu" or not half or x.dtype not in (torch.float32, torch.bfloat16):
            return None
        if x.shape[1:] not in self.programs:
            self.programs[x.shape[1:]] = acceleration.program.get()(self.module, x)
        return self.programs[x.shape[1:]]

    def _logits(self, x: Tensor) -> Tensor:
        assert self.compiled is not None
        if len(x) == self.size:
            return self.compiled(x)
        padded = x.new_zeros(self.size, *x.shape[1:]).to(memory_format=torch.channels_last)
        padded[: len(x)] = x
        return self.compiled(padded)[: len(x)]
