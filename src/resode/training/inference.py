"""Inference: a network compiled for one batch size, each BatchNorm folded into the convolution before it."""

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A network as it is now, in evaluation mode, compiled; later changes of its parameters go unnoticed.

    The compiler folds what is constant: gamma (W y - mean) / sqrt(var + eps) + beta is one convolution. It
    takes some ten seconds, and each batch of another size than the first one is filled up with zeros.

    Args:
        module: (N, C, H, W) -> logits; it is kept, and goes to evaluation mode.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()
        self.compiled = torch.compile(module, options={"freezing": True}, dynamic=False)
        self.size: int | None = None

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Logits; a batch may be smaller than the first one, or is done in parts."""
        if self.size is None:
            self.size = len(x)
        return torch.cat([self._logits(part) for part in x.split(self.size)])

    def _logits(self, x: Tensor) -> Tensor:
        assert self.size is not None
        if len(x) == self.size:
            logits: Tensor = self.compiled(x)
            return logits
        filled = x.new_zeros(self.size, *x.shape[1:]).to(memory_format=torch.channels_last)
        filled[: len(x)] = x
        logits = self.compiled(filled)
        return logits[: len(x)]
