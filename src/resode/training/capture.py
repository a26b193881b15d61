"""A step as one CUDA graph: recorded once for each shape of a batch, then launched as a whole.

A GPU does a step of a small network faster than a host can ask for its operations one by one. The first steps
of a shape are done as they are written, in the stream of the recording: libraries set themselves up, and what
is to be compiled is. The next is recorded, which computes nothing, and launched, as all that follow are:
every step is done once. What is recorded reads and writes the same places of memory for ever. So a batch is
copied to where the first one of its shape lay, and the learning rate, which changes, lies on the device.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from resode.data import Batch

WARM = 3  # steps of a shape before it is recorded
Results = tuple[Tensor, Tensor]
Work = Callable[[Batch], Results]


class Recorder(Protocol):
    """What records the operations of a device."""

    def apart(self) -> contextlib.AbstractContextManager[None]:
        """Where the work is done that is recorded later."""

    def record(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """Record the work without doing it: what does it, and where its results lie then."""


class CudaGraphs:
    """CUDA graphs of one device, in memory that they share: of none, anything is read once the next runs.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """In a stream of its own, between what was asked for before and what is asked for later."""
        outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            yield
        outside.wait_stream(self.stream)

    def record(self, work: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """As the protocol says."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(torch.cuda.current_stream(self.stream.device)),  # also after a failure
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream),
        ):
            results = work()
        return graph.replay, results


def recorder(module: nn.Module, device: torch.device, asked: bool | Literal["auto"]) -> Recorder | None:
    """What records a network's steps on a device; None where nothing does, or should.

    Args:
        module: the network.
        device: where it lies.
        asked: `auto` for networks whose parts are all this library's or torch's: what others do in Python may
            change from step to step (a block is left out by chance, say), which a recording would not see.
    """
    if device.type != "cuda" or not (known(module) if asked == "auto" else asked):
        return None
    return CudaGraphs(device)


def known(module: nn.Module) -> bool:
    """Whether all parts of a network are this library's or torch's, and nobody watches them."""
    ours = (type(part).__module__.partition(".")[0] in ("resode", "torch") for part in module.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return all(ours) and not any(getattr(part, name) for part in module.modules() for name in hooks)


class Captured:
    """Work on batches, recorded for each of their shapes.

    What it returns stays until the next call. Where a step cannot be recorded (it asks the device for a
    number, say) it is done as it is written, from then on.

    Args:
        work: of a batch; nothing that it takes from the host changes from call to call.
        recorder: of the device.
        tell: is told, where it cannot be recorded.
    """

    def __init__(self, work: Work, recorder: Recorder, tell: Callable[[str], None]) -> None:
        self.work, self.recorder, self.tell = work, recorder, tell
        self.done: Counter[Hashable] = Counter()
        self.recorded: dict[Hashable, tuple[Batch, Callable[[], None], Results]] = {}
        self.refused = False

    def __call__(self, batch: Batch) -> Results:
        if self.refused:
            return self.work(batch)
        shape = _shape(batch)
        if shape not in self.recorded:
            self.done[shape] += 1
            if self.done[shape] <= WARM:
                with self.recorder.apart():
                    return self.work(batch)
            if not self._record(shape, batch):
                return self.work(batch)
        place, do, results = self.recorded[shape]
        for here, there in zip(_tensors(place), _tensors(batch), strict=True):
            here.copy_(there)
        do()
        return results

    def _record(self, shape: Hashable, batch: Batch) -> bool:
        """Record the work on batches of a shape; whether that could be."""
        inputs, targets, partners, weight = (each if each is None else each.clone() for each in _all(batch))
        assert inputs is not None
        assert targets is not None
        place = Batch(inputs, targets, partners, weight, batch.scale)
        try:
            self.recorded[shape] = place, *self.recorder.record(lambda: self.work(place))
        except Exception as error:  # whatever the driver, torch or the network raises
            told = str(error.__context__ or error).strip().splitlines() or [type(error).__name__]
            self.tell(
                f"a step cannot be a CUDA graph ({told[0][:100]}); its operations are launched one by one"
            )
            self.refused = True
        return not self.refused


def _all(batch: Batch) -> tuple[Tensor | None, ...]:
    return batch.inputs, batch.targets, batch.partners, batch.weight


def _tensors(batch: Batch) -> list[Tensor]:
    return [each for each in _all(batch) if each is not None]


def _shape(batch: Batch) -> Hashable:
    return batch.scale, *(
        each if each is None else (each.shape, each.dtype, each.stride()) for each in _all(batch)
    )
