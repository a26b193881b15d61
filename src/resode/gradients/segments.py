"""Segments: calls in a row whose intermediate results the backward pass computes again.

`torch.utils.checkpoint` runs a function, here the loop of a network by someone else runs: it calls one unit
after the other. So a segment begins and ends around each call (autograd's saved-tensor hooks), and calls
belong to one segment as long as each takes the result of the one before it.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as tree

from resode.gradients import schedules
from resode.gradients.reversible import current_autocast
from resode.gradients.schedules import Schedule

Call = Callable[..., Any]
Context = Callable[[], AbstractContextManager[Any]]


class _Place:
    """Stands for a tensor that a call would keep; `content` is there once the segment is recomputed."""

    def __init__(self, segment: "Segment", tensor: Tensor) -> None:
        self.segment, self.likeness = segment, _likeness(tensor)
        self.content: Tensor | _Place | None = None

    def tensor(self) -> Tensor:
        """The tensor, after recomputing the segment if need be."""
        if self.content is None:
            self.segment.recompute()
        assert self.content is not None
        return self.content.tensor() if isinstance(self.content, _Place) else self.content


class Segment:
    """Calls in a row: the arguments of the first are kept, and nothing else.

    The gradient is that of plain backpropagation; a backward pass may be repeated (`retain_graph`) and
    differentiated (`create_graph`). Random numbers are drawn again and autocast is as in the first pass.

    Args:
        schedule: how many calls, or how they are divided again when they are recomputed.
        keep: receives each place in turn, where the segment is a part of one that is recomputed.
    """

    def __init__(self, schedule: "int | Schedule", keep: Callable[[_Place], object] | None = None) -> None:
        self.schedule = schedule if isinstance(schedule, tuple) else (schedule,)
        self.keep = keep
        self.calls: list[tuple[Call, Context]] = []
        self.places: list[weakref.ref[_Place]] = []
        self._filled = 0
        self._last: tuple[Callable[[], Tensor | None], int, tuple[Tensor, ...]] = (lambda: None), 0, ()

    def begins_anew(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a next call cannot belong to this segment.

        It is full, or the call does not take the last result alone, or that was changed in place, or other
        random numbers were drawn since.
        """
        if len(self.calls) == schedules.length(self.schedule) or len(args) != 1 or kwargs:
            return True
        result, version, random = self._last
        last = result()
        same = last is not None and last is args[0] and last._version == version
        return not (same and all(map(torch.equal, random, _random_states(self.device))))

    def run(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any], context: Context) -> Any:
        """Make the next call; autograd keeps places for tensors instead of tensors.

        Args:
            call: a function.
            args: its positional arguments.
            kwargs: its keyword arguments.
            context: entered when the call is made again.
        """
        if not self.calls:
            tensors = [t for t in tree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self.args, self.kwargs = args, kwargs
            self.versions = [(t, t._version) for t in tensors]
            self.device = tensors[0].device if tensors else torch.device("cpu")
            self.random = _random_states(self.device)
            self.autocast = current_autocast(torch.empty(0, device=self.device))
        self.calls.append((call, context))
        with saved_tensors_hooks(self._pack, _Place.tensor):
            result = call(*args, **kwargs)
        torch.clear_autocast_cache()  # it would keep the casts of parameters until autocast ends
        if isinstance(result, Tensor):
            self._last = weakref.ref(result), result._version, _random_states(self.device)
        return result

    def first_is_intact(self) -> bool:
        """Whether the arguments of the first call are as they were."""
        return all(tensor._version == version for tensor, version in self.versions)

    def recompute(self) -> None:
        """Make the calls again, and fill the places.

        Raises:
            RuntimeError: the calls do not compute what they did.
        """
        if not self.first_is_intact():
            raise RuntimeError(
                "the input of a recomputed unit was changed in place after the forward pass: change it after "
                "backward, or take gradient stored"
            )
        self._filled = 0
        with _drawn_again(self.random, self.device), self.autocast(), torch.enable_grad():
            self._run_again()
        torch.clear_autocast_cache()
        if self._filled != len(self.places):
            raise self._differs()

    def _run_again(self) -> None:
        *segments, _ = self.schedule
        args, kwargs, first = self.args, self.kwargs, 0
        for schedule in segments:
            inner = Segment(schedule, self._fill)
            for call, context in self.calls[first : first + schedules.length(schedule)]:
                with context():
                    args, kwargs = (inner.run(call, args, kwargs, context),), {}
            first += schedules.length(schedule)
        with saved_tensors_hooks(self._fill, _no_backward):
            for call, context in self.calls[first:]:
                with context():
                    args, kwargs = (call(*args, **kwargs),), {}

    def _pack(self, tensor: Tensor) -> _Place:
        place = _Place(self, tensor)
        self.places.append(weakref.ref(place))
        if self.keep is not None:
            self.keep(place)
        return place

    def _fill(self, content: "Tensor | _Place") -> None:
        """Fill the next place; one that autograd has dropped stays empty."""
        if self._filled == len(self.places):
            raise self._differs()
        place = self.places[self._filled]()
        self._filled += 1
        if place is None:
            return
        likeness = content.likeness if isinstance(content, _Place) else _likeness(content)
        if likeness != place.likeness:
            raise self._differs()
        place.content = content.detach() if isinstance(content, Tensor) else content

    def _differs(self) -> RuntimeError:
        return RuntimeError(
            "a unit computes other tensors when it is recomputed than in the forward pass: its forward "
            "depends on something that changes in between; take gradient stored"
        )


def _no_backward(_: object) -> Tensor:
    """Takes the place of tensors in the graph of a recomputation, which is dropped."""
    raise AssertionError("the graph of a recomputation has no backward pass of its own")


def _likeness(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _random_states(device: torch.device) -> tuple[Tensor, ...]:
    """The states of the generators that a call on this device draws from."""
    own = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return torch.get_rng_state(), *own


@contextlib.contextmanager
def _drawn_again(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Generators in earlier states within the context."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, device)
        yield
