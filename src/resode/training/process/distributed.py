"""Several processes that train one network, as `torchrun` starts them: its ranks.

Rank r of p takes every p-th image of a batch, from the r-th on, so that order and augmentation are those of
one process. DistributedDataParallel averages the gradients; each rank's mean loss is scaled by p n_r / n,
which makes the average that of the whole batch however it divides. The first rank alone writes.

What processes tell each other beside gradients goes through the host's memory (gloo), so that a GPU is never
waited for.
"""

import contextlib
import datetime
import gc
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from resode.blocks import dynamic_blocks
from resode.errors import InputError, ResourceError

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=2)  # while the first rank reads data, say


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Args:
        rank: the number of this one.
        size: how many there are.
        local: its number on this host.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: of several GPUs its own."""
        if self.size > 1 and (name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())):
            return f"cuda:{self.local}"
        return name

    def data_parallel(
        self, forward: Callable[[Tensor], Tensor], module: nn.Module
    ) -> Callable[[Tensor], Tensor]:
        """The forward pass of `module` whose backward pass averages gradients over the processes.

        Running statistics are those of the first rank at the beginning of each pass.
        """
        if self.size == 1:
            return forward
        assert isinstance(forward, nn.Module)
        varying = bool(dynamic_blocks(module))  # a control may get no gradient
        return DistributedDataParallel(forward, find_unused_parameters=varying)

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Broadcast all buffers (running statistics) from rank 0."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """All-reduce (sum) over ranks, as a new tensor."""
        total = tensor.clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """All-reduce (max) over ranks."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def all_gather(self, value: T) -> list[T]:
        """All-gather over ranks, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: T) -> T:
        """Broadcast from rank 0."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_reduce_max([0])


SINGLE = World()


def present() -> World:
    """The world that torchrun's environment variables describe; one process where there are none."""
    try:
        rank, size, local = (
            int(os.environ.get(key, default))
            for key, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
    except ValueError:
        raise InputError("RANK, WORLD_SIZE and LOCAL_RANK are no numbers: start by torchrun") from None
    return World(rank, size, local)


def restarted() -> bool:
    """Whether torchrun (--max-restarts) has started this process in the place of one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextlib.contextmanager
def together(device: str = "auto") -> Iterator[World]:
    """Join the other processes, where there are any, within the block.

    Args:
        device: where they will compute; GPUs are not looked for where it is `cpu`.

    Raises:
        ResourceError: there is no GPU for this process, or another process has gone.
    """
    world = present()
    if world.size == 1:
        yield world
        return
    gpus = torch.cuda.is_available() and device != "cpu"
    if gpus:
        if world.local >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ResourceError(f"{count} GPUs are here: at most --nproc-per-node {count}, or --device cpu")
        torch.cuda.set_device(world.local)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    store, _, _ = next(rendezvous("env://"))
    store = PrefixStore(_fresh_name(store, world), store)
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=PATIENCE)
    try:
        yield world
        world.barrier()
    except RuntimeError as error:
        if not _is_of_a_peer(error):
            raise
        raise ResourceError(
            f"another process of this run has gone ({str(error).splitlines()[0][:100]}); go on with --resume"
        ) from error
    finally:
        _leave()


def _fresh_name(store: Store, world: World) -> str:
    """A name that the first process makes up: torchrun's store still holds the addresses of the dead.

    Each of the others asks by a word of its own, so that no answer is one to an earlier process.
    """
    word = uuid.uuid4().hex
    if not world.first:
        store.set(f"word/{world.rank}", word)
        name: str = store.get(f"answer/{word}").decode()
        store.set(f"heard/{name}/{world.rank}", "")
        return name
    missing = set(range(1, world.size))
    while missing:
        for rank in filter(lambda r: store.check([f"word/{r}"]), sorted(missing)):
            store.set(f"answer/{store.get(f'word/{rank}').decode()}", word)
        missing -= {rank for rank in missing if store.check([f"heard/{word}/{rank}"])}
        time.sleep(0.01)
    return word


def _leave() -> None:
    """End the group. Its threads may need the interpreter's lock, which torch keeps while it joins them."""
    gc.collect()
    time.sleep(0.2)
    dist.destroy_process_group()


def _is_of_a_peer(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)


# ---------------------------------------------------------------- batch normalisation over all processes


class _Sum(torch.autograd.Function):
    """The sum over the processes; so is the gradient."""

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


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the mean and variance of the whole batch, over all processes.

        m = sum x / n,  v = sum (x - m)^2 / n,  y = weight (x - m) / sqrt(v + eps) + bias

    Sums in float32 at least, the one of squares about the mean. In evaluation it is `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if not self.training:
            return super().forward(x)
        values = x if x.dtype == torch.float64 else x.float()
        shape = (1, -1, 1, 1)
        count = x.new_full((1,), x.numel() // x.shape[1], dtype=values.dtype)
        n, sums = _reduced(count, values.sum((0, 2, 3)))
        mean = sums / n
        centred = values - mean.view(shape)
        (squares,) = _reduced(centred.square().sum((0, 2, 3)))
        self._record(mean.detach(), squares.detach(), n)
        y = centred * (squares / n + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _record(self, mean: Tensor, squares: Tensor, n: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            self.running_mean.lerp_(mean, 1 / self.num_batches_tracked.to(mean.dtype))
            self.running_var.lerp_(squares / (n - 1), 1 / self.num_batches_tracked.to(mean.dtype))
        else:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (n - 1), self.momentum)


def _reduced(*parts: Tensor) -> tuple[Tensor, ...]:
    """The sums of some vectors over the processes, in one exchange."""
    total: Tensor = _Sum.apply(torch.cat(parts))  # type: ignore[no-untyped-call]  # torch has no types
    sums: tuple[Tensor, ...] = total.split([len(part) for part in parts])
    return sums


def synchronise(module: nn.Module) -> nn.Module:
    """Put `SynchronisedBatchNorm2d` in the place of every `nn.BatchNorm2d`, with the very same tensors."""
    return _exchange(module, nn.BatchNorm2d, SynchronisedBatchNorm2d)


def desynchronise(module: nn.Module) -> nn.Module:
    """The other way round."""
    return _exchange(module, SynchronisedBatchNorm2d, nn.BatchNorm2d)


def _exchange(module: nn.Module, old: type[nn.BatchNorm2d], new: type[nn.BatchNorm2d]) -> nn.Module:
    made: dict[nn.Module, nn.Module] = {}  # one that stands in several places is one again
    for part in list(module.modules()):
        for name, child in part._modules.items():
            if type(child) is old:
                made[child] = made.get(child) or _like(child, new)
                part._modules[name] = made[child]
    return module


def _like(norm: nn.BatchNorm2d, kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    made = kind(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    for name, parameter in norm.named_parameters():
        made.register_parameter(name, parameter)
    for name, buffer in norm.named_buffers():
        made.register_buffer(name, buffer)
    return made.train(norm.training)
