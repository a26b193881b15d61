"""Batch normalisation with the statistics of the whole batch, over all processes, on any device.

    m = sum x / n,  v = sum (x - m)^2 / n,  y = weight (x - m) / sqrt(v + eps) + bias

`torch.nn.SyncBatchNorm` does the same on GPUs only.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resode.fields.batch_norm import BatchNorm2d


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance in training are those of the batch over all ranks.

    Sums are in float32 or float64; squares are summed about the mean. In evaluation it is `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if not self.training:
            return super().forward(x)
        values = x if x.dtype == torch.float64 else x.float()
        shape = (1, -1, 1, 1)
        count = x.new_full((1,), x.numel() // x.shape[1], dtype=values.dtype)
        n, sums = _all_reduced(count, values.sum((0, 2, 3)))
        mean = sums / n
        centred = values - mean.view(shape)
        (squares,) = _all_reduced(centred.square().sum((0, 2, 3)))
        self._update_running_statistics(mean.detach(), squares.detach(), n)
        y = centred * (squares / n + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, squares: Tensor, n: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            self.running_mean.lerp_(mean, 1 / self.num_batches_tracked.to(mean.dtype))
            self.running_var.lerp_(squares / (n - 1), 1 / self.num_batches_tracked.to(mean.dtype))
        else:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (n - 1), self.momentum)


class _AllReduceSum(torch.autograd.Function):
    """All-reduce (sum) over ranks; its gradient is the sum over ranks, too.

    `torch.distributed.nn.functional.all_reduce` does the same, but torch 2.13 warns that it is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _all_reduced(*vectors: Tensor) -> tuple[Tensor, ...]:
    """All-reduce (sum) several vectors in one exchange."""
    total: Tensor = _AllReduceSum.apply(torch.cat(vectors))  # type: ignore[no-untyped-call]  # torch has no types
    sums: tuple[Tensor, ...] = total.split([len(vector) for vector in vectors])
    return sums


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every 2d batch norm by a `SyncBatchNorm2d` that holds the same tensors, in place."""
    return _replace(module, (nn.BatchNorm2d, BatchNorm2d), SyncBatchNorm2d)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every `SyncBatchNorm2d` by a `BatchNorm2d` that holds the same tensors, in place."""
    return _replace(module, (SyncBatchNorm2d,), BatchNorm2d)


def _replace(
    module: nn.Module, old: tuple[type[nn.BatchNorm2d], ...], new: type[nn.BatchNorm2d]
) -> nn.Module:
    replaced: dict[nn.Module, nn.Module] = {}  # a layer that is used in several places stays one layer
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, nn.BatchNorm2d) and type(child) in old:
                replaced[child] = replaced.get(child) or _like(child, new)
                parent._modules[name] = replaced[child]
    return module


def _like(norm: nn.BatchNorm2d, kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    """A layer of class `kind` with the options and the tensors of `norm`."""
    made = kind(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    for name, parameter in norm.named_parameters():
        made.register_parameter(name, parameter)
    for name, buffer in norm.named_buffers():
        made.register_buffer(name, buffer)
    return made.train(norm.training)
