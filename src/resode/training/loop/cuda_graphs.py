"""CUDA graphs: a training step recorded once for each shape of a batch, then launched as a whole.

A GPU runs a step of a small network faster than the host can launch its operations one by one. The first
steps of a shape run eagerly, in the stream of the later capture: libraries initialise themselves, and what is
to be compiled is compiled. The next step is captured, which computes nothing, and replayed, as are all that
follow: every step is done exactly once. A graph reads and writes fixed addresses. So each batch is copied to
the buffers of the captured one, and the learning rate, which changes, lies on the device.
"""

import contextlib
import gc
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from resode.data import Batch
from resode.training.setup.execution import wants_cuda_graph
from resode.training.setup.preparation import Setup

WARM_UP = 3  # eager steps of a shape before capture; the last one shows whether a capture is possible
Results = tuple[Tensor, Tensor]
Work = Callable[[Batch], Results]


class Graphs(Protocol):
    """Captures the operations of a device as graphs."""

    def warm_up(self, work: Callable[[], Results]) -> tuple[Results, str]:
        """Run work eagerly where it is captured later; its results, and what forbids a capture, or ""."""

    def capture(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """Record work without running it; the function that replays it, and the tensors of its results."""


class CudaGraphs:
    """CUDA graphs of one device with a common memory pool: a replay overwrites the results of all others.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], Results]) -> tuple[Results, str]:
        """Run work eagerly in a side stream, ordered with the work around it."""
        with self._side_stream(), synchronisations() as waits:
            results = work()
        return results, "it waits for the GPU" if waits else ""

    def capture(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """Record work in the side stream; garbage is collected before, since nothing may be freed in it."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        with self._side_stream(), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            results = work()
        return graph.replay, results

    @contextlib.contextmanager
    def _side_stream(self) -> Iterator[None]:
        outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            yield
        outside.wait_stream(self.stream)


@contextlib.contextmanager
def synchronisations() -> Iterator[list[str]]:
    """Collect torch's warnings about the host waiting for the GPU; pass other warnings on."""
    before, waits = torch.cuda.get_sync_debug_mode(), list[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        caught.clear()  # the warning that this mode is a prototype
        try:
            yield waits
        finally:
            collected = list(caught)
            torch.cuda.set_sync_debug_mode(before)
    for each in collected:
        if "called a synchronizing CUDA operation" in str(each.message):
            waits.append(str(each.message))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def cuda_graphs(setup: Setup) -> Graphs | None:
    """What captures the steps of a set-up; None: they run eagerly."""
    setting = setup.experiment.cuda_graph  # `auto`: a loss of the user's may read values on the host
    wanted = wants_cuda_graph(
        setup.module,
        setup.device,
        False if setup.loss is not None and setting == "auto" else setting,
        processes=setup.world.size,
        short_of_memory=setup.memory.budget is not None,
    )
    return CudaGraphs(setup.device) if wanted else None


class GraphedStep:
    """Work on batches, replayed as a graph for each of their shapes; eager where no capture is possible.

    Args:
        graphs: of the device.
        on_message: called once where a step cannot be captured.
    """

    def __init__(self, graphs: Graphs, on_message: Callable[[str], None]) -> None:
        self.graphs, self.on_message = graphs, on_message
        self.warm_ups: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, tuple[Batch, Callable[[], None], Results]] = {}
        self.disabled = False

    def __call__(self, work: Work, batch: Batch) -> Results:
        """Do the work; its results stay valid until the next call.

        Args:
            work: the same in every call; no host value that it uses changes from call to call.
            batch: of any shape.
        """
        signature = _signature(batch)
        if not self.disabled and signature not in self.captured:
            if self.warm_ups[signature] < WARM_UP:
                return self._warm_up(work, batch, signature)
            self._capture(work, batch, signature)
        if self.disabled:
            return work(batch)
        buffers, replay, results = self.captured[signature]
        for buffer, tensor in zip(_tensors(buffers), _tensors(batch), strict=True):
            buffer.copy_(tensor)
        replay()
        return results

    def _warm_up(self, work: Work, batch: Batch, signature: Hashable) -> Results:
        """An eager step; the last one before the capture decides whether it is possible."""
        self.warm_ups[signature] += 1
        results, obstacle = self.graphs.warm_up(lambda: work(batch))
        if obstacle and self.warm_ups[signature] == WARM_UP:
            self._disable(obstacle)
        return results

    def _capture(self, work: Work, batch: Batch, signature: Hashable) -> None:
        """Capture the work on batches of a shape."""
        partners, weight = (each if each is None else each.clone() for each in (batch.partners, batch.weight))
        buffers = Batch(batch.inputs.clone(), batch.targets.clone(), partners, weight, batch.scale)
        try:
            self.captured[signature] = buffers, *self.graphs.capture(lambda: work(buffers))
        except Exception as error:  # whatever the driver, torch or the network raises
            self._disable(str(error.__context__ or error) or type(error).__name__)

    def _disable(self, why: str) -> None:
        """Capture nothing any more, and free the memory of the graphs."""
        self.disabled = True
        self.captured.clear()
        self.on_message(
            f"a step cannot be a CUDA graph ({why.strip().splitlines()[0][:100]}); its operations are "
            "launched one by one, as they are with cuda_graph: false"
        )


def _fields(batch: Batch) -> tuple[Tensor | None, ...]:
    return batch.inputs, batch.targets, batch.partners, batch.weight


def _tensors(batch: Batch) -> list[Tensor]:
    return [each for each in _fields(batch) if each is not None]


def _signature(batch: Batch) -> Hashable:
    """Equal for batches that one graph serves."""
    return batch.scale, *(
        each if each is None else (each.shape, each.dtype, each.stride()) for each in _fields(batch)
    )
