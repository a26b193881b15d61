"""Distributed data-parallel training in the processes that `torchrun` starts.

Rank r of p takes every p-th image of a batch, starting at the r-th, so order and augmentation are the same as
with one process. DistributedDataParallel averages the gradients; each rank scales its mean loss by p n_r / n
(n_r of the batch's n images), so that the average is the gradient of the whole batch, however it divides.
Only rank 0 writes files.

Everything but gradients and statistics is exchanged through host memory (gloo): no GPU synchronises for it.
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
from torch._C._distributed_c10d import PrefixStore, Store  # torch.distributed has them, without types
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from resode.errors import InputError, ResourceError

T = TypeVar("T")
TIMEOUT = datetime.timedelta(hours=2)  # long enough for rank 0 to download and decode a data set


@dataclass(frozen=True)
class World:
    """The processes of a run, and the collectives between them; each is trivial for one process.

    Args:
        rank: index of this process.
        size: number of processes.
        local_rank: index of this process on its host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "World":
        """Read RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them; one process where they are unset.

        Raises:
            InputError: one of them is not an integer.
        """
        defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        try:
            return cls(*(int(os.environ.get(key, default)) for key, default in defaults.items()))
        except ValueError:
            raise InputError(
                "RANK, WORLD_SIZE and LOCAL_RANK must be integers: start by torchrun, or unset them"
            ) from None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the process that writes and reports."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: with several processes, the GPU of its local rank."""
        if self.size > 1 and (name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())):
            return f"cuda:{self.local_rank}"
        return name

    def data_parallel(
        self, forward: Callable[[Tensor], Tensor], *, find_unused_parameters: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """Wrap `forward` in DistributedDataParallel: its backward pass averages gradients over ranks.

        Buffers (running statistics) are broadcast from rank 0 before each forward pass.

        Args:
            forward: a module, compiled or not.
            find_unused_parameters: whether a step may leave some parameters without a gradient.
        """
        if self.size == 1:
            return forward
        assert isinstance(forward, nn.Module)
        return DistributedDataParallel(forward, find_unused_parameters=find_unused_parameters)

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
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def all_gather(self, value: T) -> list[T]:
        """All-gather over ranks, in rank order."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: T) -> T:
        """Broadcast from rank 0."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank has reached this call."""
        self.all_reduce_max([0])


SINGLE = World()


def restarted_by_torchrun() -> bool:
    """Whether torchrun (--max-restarts) started this process to replace one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[World]:
    """Context manager: the process group of this run; with one process there is none.

    Args:
        device: where the run computes; with `cpu`, GPUs are neither checked nor used.

    Raises:
        ResourceError: there is no GPU for this process, or another process has died.
    """
    world = World.from_environment()
    if world.size == 1:
        yield world
        return
    gpus = torch.cuda.is_available() and device != "cpu"
    if gpus:
        _take_own_gpu(world)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    store, _, _ = next(rendezvous("env://"))
    store = PrefixStore(_agree_on_prefix(store, world), store)
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    try:
        yield world
        world.barrier()
    except RuntimeError as error:
        if not _is_communication_failure(error):
            raise
        reason = str(error).splitlines()[0][:100]
        raise ResourceError(
            f"another process of this run has died ({reason}); continue with --resume"
        ) from error
    finally:
        _destroy()


def _take_own_gpu(world: World) -> None:
    count = torch.cuda.device_count()
    if world.local_rank >= count:
        raise ResourceError(f"this host has {count} GPUs: use --nproc-per-node {count}, or --device cpu")
    torch.cuda.set_device(world.local_rank)


def _agree_on_prefix(store: Store, world: World) -> str:
    """A key prefix that rank 0 chooses for this start of the processes.

    After a restart torchrun's store still holds the addresses of dead processes, so every start needs keys of
    its own. Each other rank asks with a fresh token and cannot mistake an old reply for its own.
    """
    token = uuid.uuid4().hex
    if not world.first:
        store.set(f"request/{world.rank}", token)
        prefix: str = store.get(f"reply/{token}").decode()
        store.set(f"received/{prefix}/{world.rank}", "")
        return prefix
    waiting = set(range(1, world.size))
    while waiting:
        for rank in filter(lambda r: store.check([f"request/{r}"]), sorted(waiting)):
            store.set(f"reply/{store.get(f'request/{rank}').decode()}", token)
        waiting -= {rank for rank in waiting if store.check([f"received/{token}/{rank}"])}
        time.sleep(0.01)
    return token


def _destroy() -> None:
    """End the group. Its threads may need the interpreter's lock, which torch holds while it joins them."""
    gc.collect()
    time.sleep(0.2)
    dist.destroy_process_group()


def _is_communication_failure(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)
