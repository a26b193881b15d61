"""Reversible schemes: the inverse of the scheme recovers the states of the forward pass."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from resode import memory
from resode.controls import Theta
from resode.errors import InputError
from resode.gradients.base import Gradient, gradients, needs_backward
from resode.gradients.chain import Chain, Flow
from resode.gradients.watch import Watch, limit, relative_error
from resode.grids import TimeGrid
from resode.integrators import integrators
from resode.integrators.base import Carry, FixedStep, Integrator
from resode.memory import Footprint, StepBytes


@gradients.register(
    "reversible", summary="keeps the first and the last state; the scheme's inverse gives the others"
)
@dataclass(frozen=True)
class Reversible(Gradient):
    """Memory of one step at any depth (Gomez et al. 2017, arXiv:1707.04585; Chang et al. 2018).

    The first and the last carry are kept; the inverse of the scheme recovers the others.

    A step is inverted and differentiated with one evaluation of each of its right-hand sides: the inverse
    needs them at the points where the step did. States are kept in float32 or higher. Recovered states differ
    from the original ones by rounding, amplified by the factor that the scheme states, and by the field. The
    trainer measures the error each epoch; in a loop of the user's own some backward passes do (the 1st, 2nd,
    4th, 8th, ... of a block), and warn once if it exceeds a hundredth. Random numbers are drawn again as in
    the forward pass. Parameters interpolated between control nodes are kept, one set for each time.

    Args:
        anchor: also keep the carry before every `anchor`-th step, which bounds the growth of rounding
            (default: None, no anchors).

    Raises:
        InputError: an anchor distance that is not a positive integer.
    """

    anchor: int | None = None

    LIMITS: ClassVar[Mapping[torch.dtype, float]] = {torch.float64: 1e-10, torch.float32: 1e-3}

    def __post_init__(self) -> None:
        m = self.anchor
        if m is not None and (not isinstance(m, int) or isinstance(m, bool) or m < 1):
            raise InputError(
                f"reversible: an anchor every {m!r} steps; a positive integer is needed (default: no anchors)"
            )

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Raise `InputError` for a scheme without an inverse, or one that amplifies rounding too much."""
        super().check(integrator, grid)
        if not integrator.reversible:
            able = [
                n for n in integrators.names() if getattr(integrators.entry(n).factory, "reversible", False)
            ]
            raise InputError(
                f"gradient reversible: {integrator.name} has no inverse; take one of {', '.join(able)}, "
                "or gradient checkpointed"
            )
        self.check_rounding(integrator, grid, torch.float64)

    def check_rounding(self, integrator: Integrator, grid: TimeGrid, dtype: torch.dtype) -> None:
        """Raise `InputError` if amplified rounding exceeds 1e-10 in float64 or 1e-3 in float32."""
        assert isinstance(integrator, FixedStep)
        eps, limit = torch.finfo(dtype).eps, self.LIMITS[dtype]
        error = self._amplification(integrator, grid, self.anchor or grid.steps) * eps
        if error <= limit:
            return
        steps = min(self.anchor or grid.steps, grid.steps)
        able = next(
            (m for m in range(steps - 1, 0, -1) if self._amplification(integrator, grid, m) * eps <= limit), 0
        )
        fix = f"reversible with an anchor every {able} steps, " if able else ""
        raise InputError(
            f"gradient reversible: on {steps} steps {integrator.name} amplifies the rounding of "
            f"{str(dtype).removeprefix('torch.')} to {error:.0e} (at most {limit:g}); take fewer steps, "
            f"{fix}or gradient checkpointed"
        )

    @staticmethod
    def _amplification(integrator: FixedStep, grid: TimeGrid, anchor: int) -> float:
        """The largest amplification of rounding between two anchors."""
        spans = (grid.nodes[first : first + anchor + 1] for first in range(0, grid.steps, anchor))
        return max(integrator.amplification(TimeGrid(nodes)) for nodes in spans)

    def anchored(self, k: int) -> bool:
        """Whether the carry before step k is kept; the first always is, because it may lie on a kink.

        Behind a stem that ends in a ReLU half of the first state is exactly zero. In a field that begins with
        a ReLU (and a norm without shift) the derivative there depends on the sign of the recovered value.
        """
        return k == 0 or (self.anchor is not None and k % self.anchor == 0)

    def promoted(self, y: Tensor) -> Tensor:
        """The initial state in float32 or higher.

        Raises:
            InputError: a state of lower precision outside autocast.
        """
        if y.dtype not in self.LIMITS:
            if not y.is_meta and not torch.is_autocast_enabled(y.device.type):
                raise InputError(
                    f"gradient reversible: states in {y.dtype} cannot be recovered; keep the network in "
                    "float32 and use autocast"
                )
            return y.float()
        return y

    def integrate(self, chain: Chain, y: Tensor) -> Tensor:
        y = self.promoted(y)
        if not needs_backward():
            return super().integrate(chain, y)
        assert isinstance(chain, Flow)
        self.check_rounding(chain.integrator, chain.grid, y.dtype)
        state: Tensor = _Reversible.apply(self, chain, y, *chain.tensors())  # type: ignore[no-untyped-call]  # torch
        return state

    def footprint(self, steps: Sequence[StepBytes]) -> Footprint:
        """First and last carry and anchors; then the carry after a step, and all that inverting it takes."""
        kept = steps[-1].state + sum(step.carry for k, step in enumerate(steps) if self.anchored(k))
        inverted = (step.state + step.saved - step.repeated + step.flowing for step in steps)
        return Footprint(kept, kept + max(inverted))

    def differentiate(self, chain: Chain, k: int, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        assert isinstance(chain, Flow)
        backward = _Backward(chain)
        with torch.enable_grad():
            backward.step(k, tuple(t.detach() for t in after), tuple(map(torch.empty_like, after)), None)


@dataclass
class RandomStates:
    """The states of the random generators before each evaluation that drew from them.

    Args:
        device: the device of the block's states.
        states: the generator states (CPU, then the device's own), by the number of the evaluation.
    """

    device: torch.device
    states: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def recording(self, flow: Flow) -> Flow:
        """The same flow; it stores the generator states before its field draws random numbers."""

        def evaluate(e: int, theta: Theta | None, y: Tensor, record: bool) -> Tensor:
            before = self._current()
            value = flow.field(e, theta, y, record)
            if not all(map(torch.equal, before, self._current())):
                self.states[e] = before
            return value

        return replace(flow, field=evaluate)

    def replaying(self, flow: Flow) -> Flow:
        """The same flow; it draws the random numbers of the recorded pass."""

        def evaluate(e: int, theta: Theta | None, y: Tensor, record: bool) -> Tensor:
            if e not in self.states:
                return flow.field(e, theta, y, record)
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                state, *of_device = self.states[e]
                torch.set_rng_state(state)
                for other in of_device:
                    torch.cuda.set_rng_state(other, self.device)
                return flow.field(e, theta, y, record)

        return replace(flow, field=evaluate)

    def _current(self) -> tuple[Tensor, ...]:
        device = (torch.cuda.get_rng_state(self.device),) if self.device.type == "cuda" else ()
        return torch.get_rng_state(), *device


class _Reversible(torch.autograd.Function):
    """Forward without a graph; backward inverts each step, then differentiates it."""

    @staticmethod
    def forward(ctx: Any, method: Reversible, flow: Flow, y: Tensor, *tensors: Tensor) -> Tensor:
        random = RandomStates(y.device)
        abstract = y.is_meta or isinstance(y, FakeTensor)  # nothing is drawn
        recording = flow if abstract else random.recording(flow)
        carry, anchors = flow.start(y), {}
        for k in range(flow.steps):
            if method.anchored(k):
                anchors[k] = carry
            carry = recording.step(k, carry)
            torch.clear_autocast_cache()  # it would keep the casts of parameters until autocast ends
        ctx.flow, ctx.random, ctx.anchors = flow, random, list(anchors)
        watch = None if abstract else flow.watch
        ctx.watch = watch if watch is not None and watch.due(y) else None
        ctx.limit = limit(y) if ctx.watch is not None else 0.0
        ctx.autocast, ctx.snapshot = current_autocast(y), flow.snapshot()
        ctx.save_for_backward(*carry, *(t for anchor in anchors.values() for t in anchor))
        ctx.lengths = [len(carry), *map(len, anchors.values())]
        return flow.state(carry).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.flow.check_unchanged(ctx.snapshot)
        flow, leaves = ctx.flow.on_leaves()
        carry, *kept = _split(ctx.saved_tensors, ctx.lengths)
        anchors = dict(zip(ctx.anchors, kept, strict=True))
        backward, errors = _Backward(ctx.random.replaying(flow)), list[Tensor]()
        watch: Watch | None = ctx.watch
        with torch.enable_grad():
            end = _leaves(carry)
            flowing = _pull((flow.state(end),), end, gradients)
            for k in reversed(range(flow.steps)):
                with ctx.autocast():  # entered for each step: it keeps a cast of each parameter until it ends
                    if watch is not None and k in anchors:
                        errors.append(backward.error(k, carry, anchors[k]))
                    carry, flowing = backward.step(k, carry, flowing, anchors.get(k))
            start = flow.state(carry).detach().requires_grad_()
            to_start = _pull(flow.start(start), (start,), flowing)[0]
        if watch is not None and all(t.isfinite().all() for t in end):
            what = f"{flow.steps} steps of {flow.integrator.name}"
            watch.warn(torch.stack(errors).max(), what, ctx.limit)
        by_leaf = {key: backward.sums.get(id(leaf)) for key, leaf in leaves.items()}
        return None, None, to_start, *(by_leaf[id(t)] for t in ctx.flow.tensors())


@dataclass
class _Backward:
    """The backward pass of a flow, a step at a time.

    Args:
        flow: the flow, on leaves.
        sums: the gradients of the leaves, by id.
        pending: evaluations that are made but not yet differentiated, by number: (leaf, value).
    """

    flow: Flow
    sums: dict[int, Tensor] = field(default_factory=dict)
    pending: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def step(self, k: int, after: Carry, flowing: Carry, before: Carry | None) -> tuple[Carry, Carry]:
        """The carry before step k and its gradient, from the carry after it and its gradient.

        The inverse evaluates f with a graph, and the step takes these values instead of its own.

        Args:
            k: the number of the step.
            after: the carry after the step.
            flowing: the gradient of `after`.
            before: the carry before the step if it was kept.
        """
        if before is None:
            with torch.no_grad():
                before = replace(self.flow, field=self._evaluate).inverse(k, after)
        leaves = _leaves(before)
        outputs = replace(self.flow, field=self._replay).step(k, leaves, record=False)
        learned = tuple(t for t in self.flow.coefficients.values() if t.requires_grad)
        found = _gradients(outputs, (*leaves, *learned), flowing)
        for coefficient, g in zip(learned, found[len(leaves) :], strict=True):
            if g is not None:
                _add(self.sums, coefficient, g)
        return before, _filled(leaves, found)

    @torch.no_grad()
    def error(self, k: int, after: Carry, before: Carry) -> Tensor:
        """The relative error of the carry before step k that the inverse recovers."""
        return relative_error(self.flow.inverse(k, after), before)

    def _evaluate(self, e: int, theta: Theta | None, y: Tensor, record: bool) -> Tensor:
        """f(y), kept with its graph for `_replay`."""
        leaf = y.detach().requires_grad_()
        with torch.enable_grad():
            value = self.flow.field(e, theta, leaf, record)
        self.pending[e] = leaf, value
        return value.detach()

    def _replay(self, e: int, theta: Theta | None, y: Tensor, record: bool) -> Tensor:
        """f(y) from the kept evaluation."""
        assert theta is not None  # the flow is on leaves
        if e not in self.pending:
            self._evaluate(e, theta, y, record)
        leaf, value = self.pending.pop(e)
        parameters = tuple(t for t in theta.values() if t.requires_grad)
        result: Tensor = _Replayed.apply(y, leaf, value, parameters, self.sums)  # type: ignore[no-untyped-call]  # torch
        return result


class _Replayed(torch.autograd.Function):
    """f(y), known already with its graph from a leaf; the gradients of its parameters are added to `sums`."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        leaf: Tensor,
        value: Tensor,
        parameters: Sequence[Tensor],
        sums: dict[int, Tensor],
    ) -> Tensor:
        ctx.known = leaf, value, parameters, sums
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        leaf, value, parameters, sums = ctx.known
        found = torch.autograd.grad(value, (leaf, *parameters), gradients[0], allow_unused=True)
        for parameter, g in zip(parameters, found[1:], strict=True):
            if g is not None:
                _add(sums, parameter, g)
        return found[0], None, None, None, None


def _add(sums: dict[int, Tensor], parameter: Tensor, g: Tensor) -> None:
    known = sums.get(id(parameter))
    total = sums[id(parameter)] = g if known is None else known + g
    memory.is_gradient(total)


def _leaves(carry: Carry) -> Carry:
    return tuple(t.detach().requires_grad_() for t in carry)


def _split(tensors: Sequence[Tensor], lengths: Sequence[int]) -> Iterator[Carry]:
    rest = iter(tensors)
    return (tuple(next(rest) for _ in range(length)) for length in lengths)


def _pull(output: Carry, inputs: Carry, flowing: Carry) -> Carry:
    """The gradients of `inputs`, from the gradients `flowing` of `output`."""
    return _filled(inputs, _gradients(output, inputs, flowing))


def _gradients(outputs: Carry, inputs: Sequence[Tensor], flowing: Carry) -> tuple[Tensor | None, ...]:
    pairs = [(t, g) for t, g in zip(outputs, flowing, strict=True) if t.requires_grad]
    return torch.autograd.grad([t for t, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)


def _filled(inputs: Carry, gradients: Sequence[Tensor | None]) -> Carry:
    """The gradients, with zeros for missing ones."""
    pairs = zip(inputs, gradients, strict=False)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in pairs)


def current_autocast(y: Tensor) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A function that returns a context with the autocast state of now, for a backward pass."""
    kind = y.device.type
    if kind == "meta":  # costs are counted without autocast
        return contextlib.nullcontext
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled)
