"""Gradients: where the backward pass gets the states of a block from.

    stored         every operation keeps what it needs: backpropagation, memory in proportion to the steps
    checkpointed   the states of every m-th step are kept, the steps between are done again
    reversible     only the last state is kept, each step is undone by the scheme's inverse
    adjoint        optimise then discretise: a' = -(df/dy)^T a is solved backwards by the same scheme

The first three give the same gradient (discretise then optimise), up to the rounding of a recovered state.
The adjoint is the gradient of the differential equation, not of its discretisation: the two differ by the
scheme's error (Gholami, Keutzer & Biros 2019, arXiv:1902.10298).
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from resode.controls import Theta
from resode.errors import InputError
from resode.grids import TimeGrid
from resode.integrators import integrators
from resode.integrators.base import Carry, Evaluation, FixedStep, Integrator, Numbers, RightHandSide, carries
from resode.integrators.runge_kutta import ExplicitRungeKutta
from resode.registry import Registry

Field = Callable[[int, Theta, Tensor, bool], Tensor]


@dataclass(frozen=True)
class Flow:
    """The differential equation of a block, discretised, during one forward pass.

    Args:
        integrator: the scheme.
        grid: the state nodes.
        field: `field(e, theta, y, record)`, the right-hand side at evaluation e; `record` says whether
            running statistics take it in.
        thetas: the parameters of each evaluation, those that only a backward pass needs last.
        numbers: the learned numbers of the scheme.
        modes: which modules of the field are in training mode now.
    """

    integrator: FixedStep
    grid: TimeGrid
    field: Field
    thetas: tuple[Theta, ...]
    numbers: Numbers
    modes: Callable[[], tuple[bool, ...]] = tuple

    def rhs(self, record: bool = True, used: set[int] | None = None) -> RightHandSide:
        """f(e, y); `used` collects the numbers of the evaluations that are made."""

        def f(number: int, y: Tensor) -> Tensor:
            if used is not None:
                used.add(number)
            return self.field(number, self.thetas[number], y, record)

        return f

    def carries(self, y: Tensor) -> Iterator[Carry]:
        """The carries at all state nodes."""
        return carries(self.integrator, self.grid, self.rhs(), y, self.numbers)

    def final(self, y: Tensor) -> Tensor:
        """The state at the last node."""
        for carry in self.carries(y):
            last = carry
        return self.integrator.state(last)

    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters, each once."""
        everything = [*(t for theta in self.thetas for t in theta.values()), *self.numbers.values()]
        return tuple({id(t): t for t in everything}.values())

    def present(self) -> Any:
        """What has to be the same in a backward pass that does the forward pass again."""
        return tuple(t._version for t in self.tensors()), self.modes()

    def check_unchanged(self, earlier: Any, twice: bool = False) -> None:
        """Refuse a backward pass for parameters, or a mode, that are no longer those of the forward pass.

        And, but where `twice`, one that shall be differentiated again.
        """
        if torch.is_grad_enabled() and not twice:
            raise RuntimeError(
                "this gradient has no second derivative (create_graph=True): take gradient stored or "
                "checkpointed"
            )
        versions, modes = self.present()
        if versions != earlier[0]:
            raise RuntimeError(
                "a parameter was changed in place between the forward and the backward pass, which does the "
                "forward pass again: change it after backward"
            )
        if modes != earlier[1]:
            raise RuntimeError(
                "train() or eval() was called between the forward and the backward pass, which does the "
                "forward pass again: call it after backward"
            )

    def detached(self) -> tuple["Flow", dict[int, Tensor]]:
        """The same flow on leaves of their own, and the leaf of each parameter by its id."""
        leaves = {id(t): t.detach().requires_grad_(t.requires_grad) for t in self.tensors()}
        made: dict[int, Theta] = {}
        for theta in self.thetas:
            if id(theta) not in made:
                made[id(theta)] = {name: leaves[id(t)] for name, t in theta.items()}
        thetas = tuple(made[id(theta)] for theta in self.thetas)
        numbers = {name: leaves[id(t)] for name, t in self.numbers.items()}
        return replace(self, thetas=thetas, numbers=numbers), leaves


class Gradient(ABC):
    """A gradient method; every concrete one is a frozen dataclass."""

    @property
    def name(self) -> str:
        """How a recipe calls it."""
        chosen = gradients.describe(self)
        if isinstance(chosen, str):
            return chosen
        return ", ".join([chosen.pop("name"), *(f"{key} {value}" for key, value in chosen.items())])

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Refuse a scheme that the method cannot run (`InputError`, with the mend)."""
        if not isinstance(integrator, FixedStep):
            raise InputError(
                f"gradient {self.name}: {integrator.name} chooses its own steps; take stored or adjoint"
            )

    def evaluations(self, integrator: FixedStep, grid: TimeGrid) -> tuple[Evaluation, ...]:
        """The evaluations that the backward pass makes beyond those of the forward pass."""
        return ()

    @abstractmethod
    def integrate(self, flow: Flow, y: Tensor) -> Tensor:
        """The last state, differentiable in y and in all parameters."""


gradients: Registry[Gradient] = Registry("gradient", "")


@gradients.register("stored", summary="backpropagation through all that was kept")
@dataclass(frozen=True)
class Stored(Gradient):
    """Autograd as it is."""

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Any scheme will do."""

    def integrate(self, flow: Flow, y: Tensor) -> Tensor:
        return flow.final(y)


@gradients.register("checkpointed", summary="the states of every m-th step are kept, the rest done again")
@dataclass(frozen=True)
class Checkpointed(Gradient):
    """Recomputation from every `every`-th state (Griewank & Walther 2000; Chen 2016, arXiv:1604.06174).

    The gradient is that of `stored`, at one more forward pass; running statistics are not touched again.
    """

    every: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"checkpointed: every {self.every!r} steps; a positive integer is needed")

    def integrate(self, flow: Flow, y: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return flow.final(y)
        carry = flow.integrator.start(y)
        for first in range(0, flow.grid.steps, self.every):
            steps = range(first, min(first + self.every, flow.grid.steps))
            carry = _checkpointed(flow, steps, carry)
        return flow.integrator.state(carry)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _checkpointed(flow: Flow, steps: Sequence[int], carry: Carry) -> Carry:
    """Some steps that keep only the carry they begin with."""
    again = False

    def run(*carry: Tensor) -> Carry:
        f = flow.rhs(record=not again)
        for k in steps:
            carry = flow.integrator.step(k, flow.grid, f, carry, flow.numbers)
        return carry

    present = flow.present()

    class Recomputing:  # entered once for each backward pass through the graph
        def __enter__(self) -> None:
            nonlocal again
            flow.check_unchanged(present, twice=True)
            again = True

        def __exit__(self, *_: object) -> None:
            nonlocal again
            again = False

    result: Carry = checkpoint(
        run, *carry, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), Recomputing())
    )
    return result


@gradients.register(
    "reversible", summary="only the last state is kept; the scheme's inverse gives the others"
)
@dataclass(frozen=True)
class Reversible(Gradient):
    """Memory of one step, whatever the depth (Gomez et al. 2017, arXiv:1707.04585; Chang et al. 2018).

    The states are kept in float32 at least; recovered ones differ from the first by rounding, amplified by
    what the scheme states. Parameters interpolated between control nodes are kept, one set a time.
    """

    LIMITS: ClassVar[Mapping[torch.dtype, float]] = {torch.float64: 1e-10, torch.float32: 1e-3}

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
        error, limit = integrator.amplification(grid) * torch.finfo(dtype).eps, self.LIMITS[dtype]
        if error > limit:
            raise InputError(
                f"gradient reversible: on {grid.steps} steps {integrator.name} amplifies the rounding of "
                f"{str(dtype).removeprefix('torch.')} to {error:.0e} (at most {limit:g}); take fewer steps, "
                "or gradient checkpointed"
            )

    def integrate(self, flow: Flow, y: Tensor) -> Tensor:
        if y.dtype not in self.LIMITS:
            if not y.is_meta and not torch.is_autocast_enabled(y.device.type):
                raise InputError(
                    f"gradient reversible: states in {y.dtype} cannot be recovered; keep the network in "
                    "float32 and use autocast"
                )
            y = y.float()
        if not torch.is_grad_enabled():
            return flow.final(y)
        self.check_rounding(flow.integrator, flow.grid, y.dtype)
        state: Tensor = _Reversed.apply(flow, y, *flow.tensors())  # type: ignore[no-untyped-call]
        return state


class _Reversed(torch.autograd.Function):
    """Forward without a graph; backward undoes each step, then differentiates it."""

    @staticmethod
    def forward(ctx: Any, flow: Flow, y: Tensor, *tensors: Tensor) -> Tensor:
        for carry in flow.carries(y):
            last = carry
        ctx.flow, ctx.autocast, ctx.present = flow, present_autocast(y), flow.present()
        ctx.save_for_backward(*last)
        return flow.integrator.state(last).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.flow.check_unchanged(ctx.present)
        flow, leaves = ctx.flow.detached()
        scheme, grid = flow.integrator, flow.grid
        sums: dict[int, Tensor] = {}
        carry = tuple(t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad(), ctx.autocast():
            flowing = _pull(scheme.state(carry), carry, gradients[0])
            for k in reversed(range(grid.steps)):
                with torch.no_grad():
                    before = scheme.inverse(k, grid, flow.rhs(record=False), carry, flow.numbers)
                before = tuple(t.detach().requires_grad_() for t in before)
                used: set[int] = set()
                after = scheme.step(k, grid, flow.rhs(record=False, used=used), before, flow.numbers)
                touched = _touched(flow, used)
                flowing = _pull_through(after, before, touched, flowing, sums)
                carry = before
            start = scheme.state(carry).detach().requires_grad_()
            to_start = _pull_through(scheme.start(start), (start,), (), flowing, sums)[0]
        by_leaf = {key: sums.get(id(leaf)) for key, leaf in leaves.items()}
        return None, to_start, *(by_leaf[id(t)] for t in ctx.flow.tensors())


def present_autocast(y: Tensor) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """What restores the present autocast state in a backward pass."""
    kind = y.device.type
    if kind == "meta":  # where costs are counted there is none
        return contextlib.nullcontext
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled)


def _touched(flow: Flow, used: set[int]) -> tuple[Tensor, ...]:
    tensors = [*(t for e in sorted(used) for t in flow.thetas[e].values()), *flow.numbers.values()]
    return tuple({id(t): t for t in tensors if t.requires_grad}.values())


def _pull(output: Tensor, inputs: Carry, gradient: Tensor) -> Carry:
    """The gradients of `inputs`, from that of `output`."""
    found = torch.autograd.grad(output, inputs, gradient, allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True))


def _pull_through(
    outputs: Carry, inputs: Carry, parameters: Sequence[Tensor], flowing: Carry, sums: dict[int, Tensor]
) -> Carry:
    """The gradients of `inputs` from those of `outputs`; those of `parameters` are added to `sums` by id."""
    pairs = [(t, g) for t, g in zip(outputs, flowing, strict=True) if t.requires_grad]
    found = torch.autograd.grad(
        [t for t, _ in pairs], (*inputs, *parameters), [g for _, g in pairs], allow_unused=True
    )
    for parameter, g in zip(parameters, found[len(inputs) :], strict=True):
        if g is not None:
            known = sums.get(id(parameter))
            sums[id(parameter)] = g if known is None else known + g
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=False))


@gradients.register("adjoint", summary="optimise then discretise: the adjoint equation, solved backwards")
@dataclass(frozen=True)
class Adjoint(Gradient):
    """The continuous adjoint (Pontryagin; Chen et al. 2018, arXiv:1806.07366), by the block's own scheme.

    Backwards from t_n to t_0, with the state solved again beside it:

        y' = f(theta(t), y),   a' = -(df/dy)^T a,   dL/dtheta = int (df/dtheta)^T a dt

    For explicit Runge-Kutta schemes, and for adaptive solvers by their library. It keeps one state, but its
    gradient is only as near to that of the loss as the scheme is to the flow.
    """

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Refuse a scheme that is not a Runge-Kutta one."""
        if isinstance(integrator, FixedStep) and not isinstance(integrator, ExplicitRungeKutta):
            raise InputError(
                f"gradient adjoint: {integrator.name} is no Runge-Kutta scheme; take one (euler, rk4, ...), "
                "or gradient stored"
            )

    def evaluations(self, integrator: FixedStep, grid: TimeGrid) -> tuple[Evaluation, ...]:
        """The stages of the steps backwards, t_{k+1} - c_i h_k; c = 0 and 1 give nodes, bit for bit."""
        assert isinstance(integrator, ExplicitRungeKutta)
        steps = zip(grid.nodes, grid.nodes[1:], strict=False)
        return tuple(Evaluation((1 - c) * end + c * start) for start, end in steps for c in integrator.c)

    def integrate(self, flow: Flow, y: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return flow.final(y)
        state: Tensor = _Adjoint.apply(flow, y, *flow.tensors())  # type: ignore[no-untyped-call]
        return state


class _Adjoint(torch.autograd.Function):
    """Forward without a graph; backward integrates (y, a) from the end."""

    @staticmethod
    def forward(ctx: Any, flow: Flow, y: Tensor, *tensors: Tensor) -> Tensor:
        state = flow.final(y)
        ctx.flow, ctx.autocast, ctx.present = flow, present_autocast(y), flow.present()
        ctx.save_for_backward(state)
        return state.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.flow.check_unchanged(ctx.present)
        flow, leaves = ctx.flow.detached()
        (y,), a = ctx.saved_tensors, gradients[0]
        sums: dict[int, Tensor] = {}
        with ctx.autocast():
            for k in reversed(range(flow.grid.steps)):
                y, a = _step_back(flow, k, y, a, sums)
        for leaf in leaves.values():  # what only the forward evaluations touch has the gradient zero
            if leaf.requires_grad and id(leaf) not in sums:
                sums[id(leaf)] = torch.zeros_like(leaf)
        by_leaf = {key: sums.get(id(leaf)) for key, leaf in leaves.items()}
        return None, a, *(by_leaf[id(t)] for t in ctx.flow.tensors())


def _step_back(flow: Flow, k: int, y: Tensor, a: Tensor, sums: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """One step of the scheme from t_{k+1} to t_k for y and a; the quadrature of dL/dtheta goes to `sums`."""
    scheme, h = flow.integrator, flow.grid.intervals[k]
    assert isinstance(scheme, ExplicitRungeKutta)
    first = len(flow.thetas) - flow.grid.steps * len(scheme.c) + k * len(scheme.c)
    slopes: list[tuple[Tensor, Tensor]] = []  # f and (df/dy)^T a at the stages

    def combined(row: Sequence[float]) -> tuple[Tensor, Tensor]:
        state, costate = y, a
        for weight, (f, pulled) in zip(row, slopes, strict=False):
            if weight:
                state, costate = state - weight * h * f, costate + weight * h * pulled
        return state, costate

    for i, (row, weight) in enumerate(zip(scheme.a, scheme.b, strict=True)):
        state, costate = combined(row)
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            f = flow.rhs(record=False)(first + i, state)
        parameters = [t for t in flow.thetas[first + i].values() if t.requires_grad]
        found = torch.autograd.grad(f, (state, *parameters), costate.to(f.dtype), allow_unused=True)
        slopes.append((f.detach(), torch.zeros_like(a) if found[0] is None else found[0]))
        for parameter, g in zip(parameters, found[1:], strict=True):
            if g is not None and weight:
                known = sums.get(id(parameter))
                sums[id(parameter)] = weight * h * g if known is None else known + weight * h * g
    return combined(scheme.b)
