"""Reversible schemes: the states of the forward pass are recovered by the scheme's inverse."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from resode import memory
from resode.errors import InputError
from resode.gradients.base import Gradient, gradients
from resode.gradients.chain import Chain, Flow
from resode.grids import TimeGrid
from resode.integrators import integrators
from resode.integrators.base import Carry, FixedStep, Integrator, RightHandSide
from resode.memory import Held, StepBytes


@gradients.register(
    "reversible", summary="the first and the last state are kept; the scheme's inverse gives the others"
)
@dataclass(frozen=True)
class Reversible(Gradient):
    """Memory of one step, whatever the depth (Gomez et al. 2017, arXiv:1707.04585; Chang et al. 2018).

    The first and the last carry are kept; the others are recovered by the scheme's inverse.

    A step is undone and differentiated with one evaluation of each of its right-hand sides: the inverse
    needs them at the points where the step did. The states are kept in float32 at least; recovered ones
    differ from the first by rounding, amplified by what the scheme states. Random numbers are drawn again as
    they were. Parameters interpolated between control nodes are kept, one set a time.

    Args:
        anchor: keep the carry before every `anchor`-th step too, which bounds how far rounding can grow.

    Raises:
        InputError: an anchor distance that is not positive.
    """

    anchor: int | None = None

    LIMITS: ClassVar[Mapping[torch.dtype, float]] = {torch.float64: 1e-10, torch.float32: 1e-3}

    def __post_init__(self) -> None:
        m = self.anchor
        if m is not None and (not isinstance(m, int) or isinstance(m, bool) or m < 1):
            raise InputError(
                f"reversible: an anchor every {m!r} steps; a positive integer is needed (left out, the last "
                "state alone is kept)"
            )

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Refuse a scheme that has no inverse, or whose inverse drowns in rounding."""
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
        """Refuse where amplified rounding exceeds 1e-10 in float64, 1e-3 in float32."""
        assert isinstance(integrator, FixedStep)
        eps, limit = torch.finfo(dtype).eps, self.LIMITS[dtype]
        error = self._amplification(integrator, grid, self.anchor or grid.steps) * eps
        if error <= limit:
            return
        steps = min(self.anchor or grid.steps, grid.steps)
        able = next(
            (m for m in range(steps - 1, 0, -1) if self._amplification(integrator, grid, m) * eps <= limit), 0
        )
        mend = f"reversible with an anchor every {able} steps, " if able else ""
        raise InputError(
            f"gradient reversible: on {steps} steps {integrator.name} amplifies the rounding of "
            f"{str(dtype).removeprefix('torch.')} to {error:.0e} (at most {limit:g}); take fewer steps, "
            f"{mend}or gradient checkpointed"
        )

    @staticmethod
    def _amplification(integrator: FixedStep, grid: TimeGrid, anchor: int) -> float:
        """Of rounding, between two anchors."""
        parts = (grid.nodes[first : first + anchor + 1] for first in range(0, grid.steps, anchor))
        return max(integrator.amplification(TimeGrid(nodes)) for nodes in parts)

    def anchored(self, k: int) -> bool:
        """Whether the carry before step k is kept: the first always is, for it may lie on a kink.

        Where a stem ends in a ReLU, half of the first state is zero, and of a field that begins with one
        (and a norm without shift) the derivative there hangs on the sign of what is recovered.
        """
        return k == 0 or (self.anchor is not None and k % self.anchor == 0)

    def prepared(self, y: Tensor) -> Tensor:
        """In float32 at least."""
        if y.dtype not in self.LIMITS:
            if not y.is_meta and not torch.is_autocast_enabled(y.device.type):
                raise InputError(
                    f"gradient reversible: states in {y.dtype} cannot be recovered; keep the network in "
                    "float32 and use autocast"
                )
            return y.float()
        return y

    def through(self, chain: Chain, y: Tensor) -> Tensor:
        assert isinstance(chain, Flow)
        self.check_rounding(chain.integrator, chain.grid, y.dtype)
        state: Tensor = _Reversed.apply(self, chain, y, *chain.tensors())  # type: ignore[no-untyped-call]  # torch
        return state

    def held(self, steps: Sequence[StepBytes]) -> Held:
        """First and last carry and anchors; then the carry behind a step, and all that undoing it takes."""
        kept = steps[-1].state + sum(step.carry for k, step in enumerate(steps) if self.anchored(k))
        undone = (step.state + step.saved - step.repeated + step.flowing for step in steps)
        return Held(kept, kept + max(undone))

    def differentiate(self, chain: Chain, k: int, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        assert isinstance(chain, Flow)
        undo = _Undo(chain, chain.rhs(record=False))
        with torch.enable_grad():
            undo.step(k, tuple(t.detach() for t in after), tuple(map(torch.empty_like, after)), None)


@dataclass
class Randomness:
    """The states of the random generators before those evaluations that drew from them.

    Args:
        device: of the states of the block.
        known: by the number of the evaluation.
    """

    device: torch.device
    known: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def noted(self, f: RightHandSide) -> RightHandSide:
        """f, which notes where it draws random numbers."""

        def evaluated(number: int, y: Tensor) -> Tensor:
            before = self._present()
            value = f(number, y)
            if not all(map(torch.equal, before, self._present())):
                self.known[number] = before
            return value

        return f if self.device.type == "meta" else evaluated

    def repeated(self, f: RightHandSide) -> RightHandSide:
        """f, which draws the numbers that it drew when it was noted."""

        def evaluated(number: int, y: Tensor) -> Tensor:
            if number not in self.known:
                return f(number, y)
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                state, *of_device = self.known[number]
                torch.set_rng_state(state)
                for other in of_device:
                    torch.cuda.set_rng_state(other, self.device)
                return f(number, y)

        return evaluated

    def _present(self) -> tuple[Tensor, ...]:
        device = (torch.cuda.get_rng_state(self.device),) if self.device.type == "cuda" else ()
        return torch.get_rng_state(), *device


class _Reversed(torch.autograd.Function):
    """Forward without a graph; backward undoes each step, then differentiates it."""

    @staticmethod
    def forward(ctx: Any, method: Reversible, flow: Flow, y: Tensor, *tensors: Tensor) -> Tensor:
        randomness = Randomness(y.device)
        f = flow.rhs() if isinstance(y, FakeTensor) else randomness.noted(flow.rhs())
        carry, anchors = flow.start(y), {}
        for k in range(flow.steps):
            if method.anchored(k):
                anchors[k] = carry
            carry = flow.integrator.step(k, flow.grid, f, carry, flow.numbers)
            torch.clear_autocast_cache()  # which keeps the copies of parameters until autocast ends
        ctx.flow, ctx.randomness, ctx.anchors = flow, randomness, list(anchors)
        ctx.autocast, ctx.present = present_autocast(y), flow.present()
        ctx.save_for_backward(*carry, *(t for anchor in anchors.values() for t in anchor))
        ctx.lengths = [len(carry), *map(len, anchors.values())]
        return flow.state(carry).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.flow.check_unchanged(ctx.present)
        flow, leaves = ctx.flow.detached()
        carry, *kept = _split(ctx.saved_tensors, ctx.lengths)
        anchors = dict(zip(ctx.anchors, kept, strict=True))
        undo = _Undo(flow, ctx.randomness.repeated(flow.rhs(record=False)))
        with torch.enable_grad():
            end = _leaves(carry)
            flowing = _pull((flow.state(end),), end, gradients)
            for k in reversed(range(flow.steps)):
                with ctx.autocast():  # which keeps a copy of each parameter until it ends
                    carry, flowing = undo.step(k, carry, flowing, anchors.get(k))
            start = flow.state(carry).detach().requires_grad_()
            to_start = _pull(flow.start(start), (start,), flowing)[0]
        by_leaf = {key: undo.sums.get(id(leaf)) for key, leaf in leaves.items()}
        return None, None, to_start, *(by_leaf[id(t)] for t in ctx.flow.tensors())


@dataclass
class _Undo:
    """The backward pass of a flow, a step at a time.

    Args:
        flow: with parameters that are leaves.
        f: its right-hand side.
        sums: the gradients of the leaves, by id.
        done: evaluations by number, of which the derivative is not taken yet.
    """

    flow: Flow
    f: RightHandSide
    sums: dict[int, Tensor] = field(default_factory=dict)
    done: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def step(self, k: int, after: Carry, flowing: Carry, before: Carry | None) -> tuple[Carry, Carry]:
        """The carry before step k and its gradient, from those after it.

        The inverse evaluates f with a graph, and the step takes these values instead of its own.
        """
        scheme, grid, numbers = self.flow.integrator, self.flow.grid, self.flow.numbers

        def evaluate(number: int, y: Tensor) -> Tensor:
            leaf = y.detach().requires_grad_()
            with torch.enable_grad():
                value = self.f(number, leaf)
            self.done[number] = leaf, value
            return value.detach()

        def recall(number: int, y: Tensor) -> Tensor:
            if number not in self.done:
                evaluate(number, y)
            leaf, value = self.done.pop(number)
            result: Tensor = _Recalled.apply(y, leaf, value, self._parameters(number), self.sums)  # type: ignore[no-untyped-call]  # torch
            return result

        if before is None:
            with torch.no_grad():
                before = scheme.inverse(k, grid, evaluate, after, numbers)
        leaves = _leaves(before)
        outputs = scheme.step(k, grid, recall, leaves, numbers)
        learned = tuple(t for t in numbers.values() if t.requires_grad)
        found = _gradients(outputs, (*leaves, *learned), flowing)
        for number, g in zip(learned, found[len(leaves) :], strict=True):
            if g is not None:
                _add(self.sums, number, g)
        return before, _filled(leaves, found)

    def _parameters(self, number: int) -> tuple[Tensor, ...]:
        return tuple(t for t in self.flow.thetas[number].values() if t.requires_grad)


class _Recalled(torch.autograd.Function):
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
    """The gradients of `inputs`, from those of `output`."""
    return _filled(inputs, _gradients(output, inputs, flowing))


def _gradients(outputs: Carry, inputs: Sequence[Tensor], flowing: Carry) -> tuple[Tensor | None, ...]:
    pairs = [(t, g) for t, g in zip(outputs, flowing, strict=True) if t.requires_grad]
    return torch.autograd.grad([t for t, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)


def _filled(inputs: Carry, gradients: Sequence[Tensor | None]) -> Carry:
    """Zeros for what has no gradient."""
    pairs = zip(inputs, gradients, strict=False)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in pairs)


def present_autocast(y: Tensor) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """What restores the present autocast state in a backward pass."""
    kind = y.device.type
    if kind == "meta":  # where costs are counted there is none
        return contextlib.nullcontext
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled)
