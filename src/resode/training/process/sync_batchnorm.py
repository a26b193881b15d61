"""Batch normalisation with the statistics of the whole batch, over all processes, on any device.

    m = sum x / n,  v = sum (x - m)^2 / n,  y = weight (x - m) / sqrt(v + eps) + bias

`torch.nn.SyncBatchNorm` does the same on GPUs only.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resode.errors import InputError
from resode.fields.batch_norm import BatchNorm2d


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance in training are those of the batch over all ranks.

    Sums are in float32 or float64; squares are summed about the mean. In evaluation it is `nn.BatchNorm2d`.

    Args:
        norm: the layer whose options and tensors it takes.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        options = (norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        super().__init__(norm.num_features, *options, device="meta")
        self._norm = (norm,)  # in a tuple: not a submodule
        _share_tensors(norm, self)

    def original(self) -> nn.BatchNorm2d:
        """The layer that it was made of, with the present tensors."""
        (norm,) = self._norm
        _share_tensors(self, norm)
        return norm

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
        if self.weight is not None:
            y = y * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
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
    """Replace every batch norm by a `SyncBatchNorm2d` that holds the same tensors, in place.

    Raises:
        InputError: a batch norm that is not 2d, or a subclass that computes something of its own; nothing is
            replaced.
    """
    for name, norm in module.named_modules():
        if _is_other(norm):
            raise InputError(
                f"sync_batchnorm: only nn.BatchNorm2d is synchronised, not {name} ({type(norm).__name__}); "
                "replace this layer or set sync_batchnorm=false"
            )
    return _replaced(module, lambda child: SyncBatchNorm2d(child) if _is_batchnorm2d(child) else None)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every `SyncBatchNorm2d` by the layer that it replaced, which gets its tensors, in place."""
    return _replaced(module, lambda child: child.original() if isinstance(child, SyncBatchNorm2d) else None)


def _is_batchnorm2d(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether it computes what `nn.BatchNorm2d` does; a subclass may have an `__init__` of its own."""
    forward = type(module).forward in (nn.BatchNorm2d.forward, BatchNorm2d.forward)
    return isinstance(module, nn.BatchNorm2d) and forward and not list(module.children())


def _is_other(module: nn.Module) -> bool:
    """Whether it is a batch norm which would keep the statistics of each rank."""
    synchronised = isinstance(module, nn.SyncBatchNorm | SyncBatchNorm2d) or _is_batchnorm2d(module)
    return isinstance(module, _BatchNorm) and not synchronised


def _share_tensors(source: nn.BatchNorm2d, target: nn.BatchNorm2d) -> None:
    """Give `target` the parameters, buffers and mode of `source`."""
    for name, parameter in source._parameters.items():
        target.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        target.register_buffer(name, buffer)
    target.train(source.training)


def _replaced(module: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace submodules in place; a layer that is used in several places stays one layer."""
    made: dict[nn.Module, nn.Module | None] = {}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is None:
                continue
            if child not in made:
                made[child] = replacement(child)
            if (new := made[child]) is not None:
                setattr(parent, name, new)
    return module
