"""Memory: the bytes of a training step between its forward and its backward pass, predicted and measured.

    memory of a step = parameters + gradients + what the optimizer keeps + activations

Activations are by far the largest part: in plain backpropagation each operation keeps what its derivative
needs, in proportion to depth and batch size. `profile` counts what every step of a network would keep, by a
forward pass on tensors without numbers; a gradient method says what of it is alive at once (`Held`).
`Live` measures what really is.
"""

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

from resode.abstract import Abstract, dtype_of, stand_ins
from resode.errors import InputError
from resode.mode import mode

Shape = tuple[int, int, int]  # channels, height and width of one image


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one step of a chain, as backpropagation would keep them.

    Args:
        carry: what the step begins with, but for what was kept before its chain began.
        saved: what autograd keeps of the step and of no earlier one.
        repeated: the part of `saved` that the carry holds as well.
        state: the larger of the carries before and after.
        flowing: what its backward pass holds beside that: gradients of states, above all.
    """

    carry: int
    saved: int
    repeated: int = 0
    state: int = 0
    flowing: int = 0


@dataclass(frozen=True)
class Held:
    """Bytes of a part of a network: kept until its backward pass, and at the peak of that pass."""

    kept: int
    peak: int


class Steps(Protocol):
    """A chain, as far as its memory goes."""

    def alike(self, k: int) -> Any:
        """Equal for steps that cost the same from carries of one shape."""
        ...

    def apart(self) -> "Steps":
        """The same chain, whose parameters are leaves."""
        ...

    def tensors(self) -> Sequence[Tensor]:
        """All parameters."""
        ...


class Method(Protocol):
    """A gradient method, as far as its memory goes."""

    def held(self, steps: Sequence[StepBytes]) -> Held:
        """The bytes of a chain of steps."""
        ...

    def differentiate(self, chain: Any, k: int, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Step k forwards and backwards, as the backward pass does it, between carries of such shapes."""
        ...


def span(steps: Sequence[StepBytes]) -> int:
    """The peak of steps that are all kept: in the backward pass of each those before it are still there."""
    kept = peak = 0
    for step in steps:
        kept += step.saved
        peak = max(peak, kept + step.flowing)
    return peak


@dataclass(frozen=True)
class Part:
    """A part of a network in the order of its forward pass: a chain with its method, or what lies between.

    Args:
        steps: the bytes of each step; what lies between chains counts as one step.
        method: the gradient method of the chain.
        chain: the chain itself.
    """

    steps: tuple[StepBytes, ...]
    method: Method | None = None
    chain: Steps | None = None

    def held(self, method: Method | None = None) -> Held:
        """Its bytes, with its own method or with another."""
        chosen = method or self.method
        if chosen is None:
            return Held(sum(step.saved for step in self.steps), span(self.steps))
        return chosen.held(self.steps)


@dataclass(frozen=True)
class Profile:
    """What a network keeps in one training step, part by part."""

    parts: tuple[Part, ...]

    @property
    def chains(self) -> tuple[Part, ...]:
        """The parts that have a gradient method."""
        return tuple(part for part in self.parts if part.method is not None)

    def kept(self) -> int:
        """Bytes that plain backpropagation keeps at the end of the forward pass."""
        return sum(step.saved for part in self.parts for step in part.steps)

    def peak(self, methods: Sequence[Method] | None = None) -> int:
        """The largest number of bytes that are alive at once.

        Args:
            methods: of each chain, in order; left out, their own.
        """
        chosen = iter(methods if methods is not None else [part.method for part in self.chains])
        kept = peak = 0
        for part in self.parts:
            held = part.held(None if part.method is None else next(chosen))
            peak, kept = max(peak, kept + held.peak), kept + held.kept
        return max(peak, kept)


class Watch:
    """Notes what each step of a forward pass keeps; all chains run as if they were stored."""

    def __init__(self, fixed: Iterable[Tensor]) -> None:
        self.parts: list[Part] = []
        self.seen: dict[int, Tensor] = {}  # by storage; held, so that no storage is taken for another
        self.fixed = {_storage(tensor) for tensor in fixed}  # parameters and buffers
        self.current: dict[int, int] = {}  # bytes by storage, of the present step
        self.alone: dict[Any, int] = {}  # the peak of a step alone, of each kind

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd keeps; each storage counts once."""
        key = _storage(tensor)
        if key not in self.seen and key not in self.fixed:
            self.seen[key] = tensor
            self.current[key] = tensor.untyped_storage().nbytes()
        return tensor

    def part(self, method: Method, chain: Steps, carries: Iterable[tuple[Tensor, ...]]) -> Any:
        """Run a chain, and note its steps; the last carry."""
        self.close()
        self._made(chain)
        outside = set(self.seen) | self.fixed
        steps: list[StepBytes] = []
        before: tuple[Tensor, ...] | None = None
        for carry in carries:
            if before is not None:
                saved, self.current = self.current, {}
                steps.append(self._step(method, chain, len(steps), before, carry, saved, outside))
            before = carry
        self.parts.append(Part(tuple(steps), method, chain))
        return before

    def _made(self, chain: Steps) -> None:
        """Parameters that were computed, between control nodes say, are kept; so are their gradients."""
        made = {k: t for t in chain.tensors() if (k := _storage(t)) not in self.fixed and k not in self.seen}
        if made:
            self.seen.update(made)
            size = sum(t.untyped_storage().nbytes() for t in made.values())
            self.parts.append(Part((StepBytes(0, 2 * size),)))

    def _step(
        self, method: Method, chain: Steps, k: int, before: tuple[Tensor, ...], after: Sequence[Tensor],
        saved: Mapping[int, int], outside: set[int],
    ) -> StepBytes:  # fmt: skip
        sizes = _bytes(before)
        repeated = sum(size for key, size in saved.items() if key in sizes)
        kind = method, chain.alike(k), *((t.shape, t.stride(), t.dtype) for t in before)
        if kind not in self.alone:
            self.alone[kind] = _peak_alone(method, chain.apart(), k, before, after)
        return StepBytes(
            carry=sum(size for key, size in sizes.items() if key not in outside),
            saved=sum(saved.values()),
            repeated=repeated,
            state=max(sum(sizes.values()), sum(_bytes(after).values())),
            flowing=max(0, self.alone[kind] - sum(saved.values()) + repeated),
        )

    def close(self) -> None:
        """End what lies before a chain, or behind the last."""
        if self.current:
            self.parts.append(Part((StepBytes(0, sum(self.current.values())),)))
        self.current = {}


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


def watch() -> Watch | None:
    """Who watches the present forward pass, if anybody does."""
    return _watch.get()


def profile(module: nn.Module, shape: Shape, batch: int, dtype: torch.dtype | None = None) -> Profile:
    """What every part of a network keeps in a training step; its numbers are not touched.

    Parameters and buffers do not count, but the copies of parameters that autocast makes do. Images are in
    channels-last memory, as in training.

    Args:
        module: any module that takes (N, C, H, W), on any device, the meta device too.
        shape: (C, H, W) of one image.
        batch: the number of images.
        dtype: bfloat16 or float16 for a forward pass under autocast; left out, the module's own.
    """
    own = dtype_of(module)
    if dtype not in (None, own, torch.bfloat16, torch.float16):
        raise InputError(f"the memory of a step in {dtype}: autocast takes bfloat16 or float16")
    autocast = torch.autocast("cpu", dtype, enabled=dtype not in (None, own))
    with FakeTensorMode(allow_non_fake_inputs=True), Abstract(), mode(module, training=True), autocast:
        tensors = stand_ins(module, torch.device("cpu"))
        x = torch.empty(batch, *shape, dtype=own).to(memory_format=torch.channels_last)
        watching = Watch(tensors.values())
        token = _watch.set(watching)
        try:
            with torch.enable_grad(), saved_tensors_hooks(watching.keep, lambda tensor: tensor):
                functional_call(module, tensors, (x,), tie_weights=False)
        finally:
            _watch.reset(token)
        watching.close()
    return Profile(tuple(watching.parts))


def _peak_alone(
    method: Method, chain: Steps, k: int, before: Sequence[Tensor], after: Sequence[Tensor]
) -> int:
    """The peak of one step, forwards and backwards, but for the carry that it begins with."""
    token = _watch.set(None)
    try:
        with saved_tensors_hooks(lambda t: t, lambda t: t), measured(chain.tensors()) as live:
            method.differentiate(chain, k, before, after)
    finally:
        _watch.reset(token)
        for tensor in chain.tensors():
            tensor.grad = None
    return live.peak


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensors: Sequence[Tensor]) -> Mapping[int, int]:
    return {_storage(t): t.untyped_storage().nbytes() for t in tensors}


# ---------------------------------------------------------------- measured


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, for as long as they are alive.

    `peak` is the largest number so far. Workspaces inside of an operation are not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types
        self.peak = self.now = 0
        self._alive: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(t) for t in tree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree.tree_leaves(result):
            if isinstance(tensor, Tensor) and _storage(tensor) not in given:
                self._born(tensor)
        return result

    def _born(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _storage(tensor)
        if key in self._alive:
            return
        alive = weakref.ref(storage, lambda _: self._gone(key))
        self._alive[key] = alive, storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        if key in self._alive:
            self.now -= self._alive.pop(key)[1]

    def ignore(self, tensor: Tensor) -> None:
        """Count a tensor no longer: it is a gradient of a parameter, say."""
        self._gone(_storage(tensor))


_live: ContextVar[Live | None] = ContextVar("live", default=None)


def is_gradient(tensor: Tensor) -> None:
    """Tell who measures that a tensor is the gradient of a parameter, before it is handed over."""
    if (live := _live.get()) is not None:
        live.ignore(tensor)


@contextlib.contextmanager
def measured(parameters: Iterable[Tensor]) -> Iterator[Live]:
    """Measure the forward and backward passes within the block; gradients of `parameters` do not count."""
    live = Live()

    def settled(parameter: Tensor) -> None:
        if parameter.grad is not None:
            live.ignore(parameter.grad)

    leaves = [p for p in parameters if p.requires_grad and p.is_leaf]
    hooks = [p.register_post_accumulate_grad_hook(settled) for p in leaves]
    token = _live.set(live)
    try:
        with live:
            yield live
    finally:
        _live.reset(token)
        for hook in hooks:
            hook.remove()
