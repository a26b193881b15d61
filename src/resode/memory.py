"""Memory: the bytes of a training step between its forward and its backward pass, predicted and measured.

    memory of a step = parameters + gradients + optimizer state + activations

Activations are by far the largest term: in plain backpropagation each operation keeps what its derivative
needs, in proportion to depth and batch size. `profile` counts what every step of a network would keep, by a
forward pass on fake tensors; a gradient method says how much of it is alive at once (`Footprint`).
`measured` measures a real step.
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

from resode.abstract import AbstractMode, dtype_of, empty_tensors
from resode.errors import InputError
from resode.mode import mode

Shape = tuple[int, int, int]  # channels, height and width of one image


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one step of a chain in plain backpropagation.

    Args:
        carry: the carry before the step, without tensors that were kept before the chain began.
        saved: what autograd keeps for this step and for no earlier one.
        repeated: the share of `saved` that the carry holds as well.
        state: the larger of the carries before and after.
        flowing: what the backward pass of the step holds in addition, mostly gradients of states.
    """

    carry: int
    saved: int
    repeated: int = 0
    state: int = 0
    flowing: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes of a section of a network: kept until its backward pass, and at the peak of that pass."""

    kept: int
    peak: int


class Steps(Protocol):
    """A chain, as its memory is counted (`resode.gradients.Chain`)."""

    def cost_key(self, k: int) -> Any:
        """A key that is equal for steps of equal cost, given carries of equal shape."""
        ...

    def detached(self) -> "Steps":
        """The same chain with leaves as parameters."""
        ...

    def tensors(self) -> Sequence[Tensor]:
        """All parameters."""
        ...


class Method(Protocol):
    """A gradient method, as its memory is counted (`resode.gradients.Gradient`)."""

    def footprint(self, steps: Sequence[StepBytes]) -> Footprint:
        """The bytes of a chain of steps."""
        ...

    def differentiate(self, chain: Any, k: int, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Run step k forwards and backwards, as the backward pass does, between carries of these shapes."""
        ...


def span(steps: Sequence[StepBytes]) -> int:
    """The peak of steps that are all kept: the backward pass of a step still holds all earlier ones."""
    kept = peak = 0
    for step in steps:
        kept += step.saved
        peak = max(peak, kept + step.flowing)
    return peak


@dataclass(frozen=True)
class Section:
    """A section of a network, in the order of its forward pass: a chain, or what lies between two chains.

    Args:
        steps: the bytes of each step; what lies between chains counts as one step.
        method: the gradient method of the chain (None between chains).
        chain: the chain (None between chains).
    """

    steps: tuple[StepBytes, ...]
    method: Method | None = None
    chain: Steps | None = None

    def footprint(self, method: Method | None = None) -> Footprint:
        """Its bytes with a gradient method (default: its own)."""
        chosen = method or self.method
        if chosen is None:
            return Footprint(sum(step.saved for step in self.steps), span(self.steps))
        return chosen.footprint(self.steps)


@dataclass(frozen=True)
class Profile:
    """What a network keeps in one training step, section by section."""

    sections: tuple[Section, ...]

    @property
    def chains(self) -> tuple[Section, ...]:
        """The sections that have a gradient method."""
        return tuple(section for section in self.sections if section.method is not None)

    def kept(self) -> int:
        """Bytes that plain backpropagation keeps at the end of the forward pass."""
        return sum(step.saved for section in self.sections for step in section.steps)

    def peak(self, methods: Sequence[Method] | None = None) -> int:
        """The largest number of bytes that are alive at once.

        Args:
            methods: the gradient method of each chain, in order (default: their own).
        """
        chosen = iter(methods if methods is not None else [section.method for section in self.chains])
        kept = peak = 0
        for section in self.sections:
            own = section.footprint(None if section.method is None else next(chosen))
            peak, kept = max(peak, kept + own.peak), kept + own.kept
        return max(peak, kept)


class Profiler:
    """Records what autograd keeps for each step of a forward pass; all chains run as if stored.

    Args:
        fixed: parameters and buffers, which do not count.
    """

    def __init__(self, fixed: Iterable[Tensor]) -> None:
        self.sections: list[Section] = []
        self.seen: dict[int, Tensor] = {}  # by storage; kept alive, so that no address is reused
        self.fixed = {_storage(tensor) for tensor in fixed}
        self.current: dict[int, int] = {}  # bytes by storage, for the step that runs now
        self.peaks: dict[Any, int] = {}  # the peak of a single step, by its cost key

    def keep(self, tensor: Tensor) -> Tensor:
        """Record a tensor that autograd keeps; each storage counts once.

        Returns:
            An alias without a graph: an operation that keeps its own result would keep itself for ever.
        """
        key = _storage(tensor)
        if key not in self.seen and key not in self.fixed:
            self.seen[key] = tensor
            self.current[key] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    def run(self, method: Method, chain: Steps, carries: Iterable[tuple[Tensor, ...]]) -> Any:
        """Run a chain and record its steps; returns the last carry."""
        recording = self.begin(method, chain)
        before: tuple[Tensor, ...] | None = None
        for carry in carries:
            if before is not None:
                recording.step(before, carry)
            before = carry
        recording.end()
        return before

    def begin(self, method: Method, chain: Steps) -> "Recording":
        """Begin the section of a chain, whose steps are made elsewhere."""
        self.close()
        self._record_parameters(chain)
        return Recording(self, method, chain)

    def _record_parameters(self, chain: Steps) -> None:
        """Parameters that are computed, by interpolation say, are kept, and so are their gradients."""
        made = {k: t for t in chain.tensors() if (k := _storage(t)) not in self.fixed and k not in self.seen}
        if made:
            self.seen.update(made)
            size = sum(t.untyped_storage().nbytes() for t in made.values())
            self.sections.append(Section((StepBytes(0, 2 * size),)))

    def close(self) -> None:
        """End the section before a chain, or after the last one."""
        if self.current:
            self.sections.append(Section((StepBytes(0, sum(self.current.values())),)))
        self.current = {}


class Recording:
    """Records the steps of one chain.

    Args:
        profiler: of the forward pass.
        method: the gradient method of the chain.
        chain: the chain.
    """

    def __init__(self, profiler: Profiler, method: Method, chain: Steps) -> None:
        self.profiler, self.method, self.chain = profiler, method, chain
        self.outside = set(profiler.seen) | profiler.fixed
        self.steps: list[StepBytes] = []

    def step(self, before: tuple[Tensor, ...], after: Sequence[Tensor]) -> None:
        """Record the step that was just made, from its carries."""
        profiler, k = self.profiler, len(self.steps)
        saved, profiler.current = profiler.current, {}
        sizes = _bytes(before)
        repeated = sum(size for key, size in saved.items() if key in sizes)
        key = self.method, self.chain.cost_key(k), *((t.shape, t.stride(), t.dtype) for t in before)
        if key not in profiler.peaks:
            profiler.peaks[key] = _peak_of_step(self.method, self.chain.detached(), k, before, after)
        self.steps.append(
            StepBytes(
                carry=sum(size for key, size in sizes.items() if key not in self.outside),
                saved=sum(saved.values()),
                repeated=repeated,
                state=max(sum(sizes.values()), sum(_bytes(after).values())),
                flowing=max(0, profiler.peaks[key] - sum(saved.values()) + repeated),
            )
        )

    def end(self) -> None:
        """End the section."""
        self.profiler.sections.append(Section(tuple(self.steps), self.method, self.chain))


_profiler: ContextVar[Profiler | None] = ContextVar("profiler", default=None)


def active_profiler() -> Profiler | None:
    """The profiler of the forward pass that runs now, if any."""
    return _profiler.get()


def profile(module: nn.Module, shape: Shape, batch: int, dtype: torch.dtype | None = None) -> Profile:
    """Count what each section of a network keeps in a training step; the module is not changed.

    Parameters and buffers do not count, but the casts of parameters that autocast makes do. Images are in
    channels-last memory format, as in training.

    Args:
        module: any module that takes (N, C, H, W), on any device including meta.
        shape: (C, H, W) of one image.
        batch: the batch size.
        dtype: bfloat16 or float16 for a forward pass under autocast (default: the module's own dtype).

    Raises:
        InputError: another dtype.
    """
    own = dtype_of(module)
    if dtype not in (None, own, torch.bfloat16, torch.float16):
        raise InputError(f"the memory of a step in {dtype}: autocast takes bfloat16 or float16")
    autocast = torch.autocast("cpu", dtype, enabled=dtype not in (None, own))
    with FakeTensorMode(allow_non_fake_inputs=True), AbstractMode(), mode(module, training=True), autocast:
        tensors = empty_tensors(module, torch.device("cpu"))
        x = torch.empty(batch, *shape, dtype=own).to(memory_format=torch.channels_last)
        profiler = Profiler(tensors.values())
        token = _profiler.set(profiler)
        try:
            with torch.enable_grad(), saved_tensors_hooks(profiler.keep, lambda tensor: tensor):
                functional_call(module, tensors, (x,), tie_weights=False)
        finally:
            _profiler.reset(token)
        profiler.close()
        profiler.seen.clear()  # the graph of these tensors holds `keep`, a cycle that Python cannot see
    return Profile(tuple(profiler.sections))


def _peak_of_step(
    method: Method, chain: Steps, k: int, before: Sequence[Tensor], after: Sequence[Tensor]
) -> int:
    """The peak of one step, forwards and backwards, without the carry that it begins with."""
    token = _profiler.set(None)
    try:
        with saved_tensors_hooks(lambda t: t, lambda t: t), measured(chain.tensors()) as live:
            method.differentiate(chain, k, before, after)
    finally:
        _profiler.reset(token)
        for tensor in chain.tensors():
            tensor.grad = None
    return live.peak


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensors: Sequence[Tensor]) -> Mapping[int, int]:
    return {_storage(t): t.untyped_storage().nbytes() for t in tensors}


# ---------------------------------------------------------------- measured


class Live(TorchDispatchMode):
    """Counts the bytes of all living tensors that operations have made.

    `peak` is the largest number so far. Workspaces inside an operation are not seen.
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
        """Stop counting a tensor, the gradient of a parameter say."""
        self._gone(_storage(tensor))


_live: ContextVar[Live | None] = ContextVar("live", default=None)


def is_gradient(tensor: Tensor) -> None:
    """Exclude a tensor from the measurement: it is the gradient of a parameter, not yet assigned."""
    if (live := _live.get()) is not None:
        live.ignore(tensor)


@contextlib.contextmanager
def measured(parameters: Iterable[Tensor]) -> Iterator[Live]:
    """Measure forward and backward passes within the context; gradients of `parameters` do not count."""
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
