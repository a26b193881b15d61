"""A step as one CUDA graph: recorded once for each shape of a batch, then launched as a whole.

A GPU does a step of a small network faster than a host can ask for its operations one by one. The first steps
of a shape are done as they are written, in the stream of the recording: libraries set themselves up, and what
is to be compiled is. The next is recorded, which computes nothing, and launched, as all that follow are:
every step is done once. What is recorded reads and writes the same places of memory for ever. So a batch is
copied to where the first one of its shape lay, and the learning rate, which changes, lies on the device.
"""

import contextlib
import gc
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from resode.blocks import dynamic_blocks
from resode.data import Batch

WARM = 3  # steps of a shape before it is recorded; in the last of them it shows whether that can be
Results = tuple[Tensor, Tensor]
Work = Callable[[Batch], Results]


class Recorder(Protocol):
    """What records the operations of a device."""

    def apart(self, work: Callable[[], Results]) -> tuple[Results, str]:
        """Do work where it is recorded later; what it returns, and what forbids to record it, if anything."""

    def record(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """Record work without doing it: what does it, and where its results lie then."""


class CudaGraphs:
    """CUDA graphs of one device, in memory that they share: of none, anything is read once the next runs.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def apart(self, work: Callable[[], Results]) -> tuple[Results, str]:
        """In a stream of its own, between what was asked for before and what is asked for later."""
        with self._apart(), watched() as waits:
            results = work()
        return results, "it waits for the GPU" if waits else ""

    def record(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """As the protocol says; what the garbage collector would free meanwhile is freed before."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        with self._apart(), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            results = work()
        return graph.replay, results

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            yield
        outside.wait_stream(self.stream)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Collect what torch warns of when the host waits for the GPU; pass other warnings on."""
    before, found = torch.cuda.get_sync_debug_mode(), list[str]()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        told.clear()  # that this mode is a prototype
        try:
            yield found
        finally:
            heard = list(told)
            torch.cuda.set_sync_debug_mode(before)
    for each in heard:
        if "called a synchronizing CUDA operation" in str(each.message):
            found.append(str(each.message))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def recorder(
    module: nn.Module, device: torch.device, asked: bool | Literal["auto"], *, processes: int, sparing: bool
) -> Recorder | None:
    """What records a network's steps on a device; None where nothing does, or should.

    Args:
        module: the network.
        device: where it lies.
        asked: `auto` for networks whose parts are all this library's or torch's: what others do in Python may
            change from step to step (a block is left out by chance, say), which a recording would not see.
        processes: that train together.
        sparing: whether memory is short: a graph keeps its own, so that `auto` means no.
    """
    wanted = known(module) and not sparing if asked == "auto" else asked
    return CudaGraphs(device) if wanted and not hindrance(module, device, processes) else None


def hindrance(module: nn.Module, device: torch.device, processes: int) -> str:
    """Why steps are not recorded even where that is asked for; nothing where they are."""
    if device.type != "cuda":
        return "no GPU"
    if processes > 1:
        return f"{processes} processes"
    adaptive = any(not block.evaluations for block in dynamic_blocks(module))
    return "an adaptive solver, which asks for numbers in each step" if adaptive else ""


def known(module: nn.Module) -> bool:
    """Whether all parts of a network are this library's or torch's, and nobody watches them."""
    ours = (type(part).__module__.partition(".")[0] in ("resode", "torch") for part in module.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return all(ours) and not any(getattr(part, name) for part in module.modules() for name in hooks)


class Captured:
    """Work on batches, recorded for each of their shapes; where it cannot be, it is done as it is written.

    Args:
        recorder: of the device.
        tell: is told where a step cannot be recorded.
    """

    def __init__(self, recorder: Recorder, tell: Callable[[str], None]) -> None:
        self.recorder, self.tell = recorder, tell
        self.done: Counter[Hashable] = Counter()
        self.recorded: dict[Hashable, tuple[Batch, Callable[[], None], Results]] = {}
        self.refused = False

    def __call__(self, work: Work, batch: Batch) -> Results:
        """Do the work; what it returns stays until the next call.

        Args:
            work: always the same; nothing that it takes from the host changes from call to call.
            batch: of any shape.
        """
        shape = _shape(batch)
        if not self.refused and shape not in self.recorded:
            if self.done[shape] < WARM:
                return self._written(work, batch, shape)
            self._record(work, batch, shape)
        if self.refused:
            return work(batch)
        place, do, results = self.recorded[shape]
        for here, there in zip(_tensors(place), _tensors(batch), strict=True):
            here.copy_(there)
        do()
        return results

    def _written(self, work: Work, batch: Batch, shape: Hashable) -> Results:
        """As it is written; the last time before it is recorded, whether it can be."""
        self.done[shape] += 1
        results, hindrance = self.recorder.apart(lambda: work(batch))
        if hindrance and self.done[shape] == WARM:
            self._refuse(hindrance)
        return results

    def _record(self, work: Work, batch: Batch, shape: Hashable) -> None:
        """Record the work on batches of a shape."""
        partners, weight = (each if each is None else each.clone() for each in (batch.partners, batch.weight))
        place = Batch(batch.inputs.clone(), batch.targets.clone(), partners, weight, batch.scale)
        try:
            self.recorded[shape] = place, *self.recorder.record(lambda: work(place))
        except Exception as error:  # whatever the driver, torch or the network raises
            self._refuse(str(error.__context__ or error) or type(error).__name__)

    def _refuse(self, why: str) -> None:
        """Record nothing any more, and give the memory of what is recorded back."""
        self.refused = True
        self.recorded.clear()
        self.tell(
            f"a step cannot be a CUDA graph ({why.strip().splitlines()[0][:100]}); its operations are "
            "launched one by one, as they are with cuda_graph: false"
        )


def _all(batch: Batch) -> tuple[Tensor | None, ...]:
    return batch.inputs, batch.targets, batch.partners, batch.weight


def _tensors(batch: Batch) -> list[Tensor]:
    return [each for each in _all(batch) if each is not None]


def _shape(batch: Batch) -> Hashable:
    return batch.scale, *(
        each if each is None else (each.shape, each.dtype, each.stride()) for each in _all(batch)
    )
