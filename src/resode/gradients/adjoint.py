"""The continuous adjoint: optimise then discretise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resode.errors import InputError
from resode.gradients.base import Gradient, gradients, needs_backward
from resode.gradients.chain import Chain, Flow
from resode.gradients.reversible import current_autocast
from resode.grids import TimeGrid
from resode.integrators.base import Evaluation, FixedStep, Integrator
from resode.integrators.runge_kutta import ExplicitRungeKutta
from resode.memory import Footprint, StepBytes


@gradients.register("adjoint", summary="optimise then discretise: the adjoint equation, solved backwards")
@dataclass(frozen=True)
class Adjoint(Gradient):
    """The continuous adjoint (Pontryagin; Chen et al. 2018, arXiv:1806.07366), by the block's own scheme.

    Backwards from t_n to t_0, with the state solved again beside it:

        y' = f(theta(t), y),   a' = -(df/dy)^T a,   dL/dtheta = int (df/dtheta)^T a dt

    For explicit Runge-Kutta schemes, and for adaptive solvers by torchdiffeq. It keeps one state. Its
    gradient differs from that of the loss by the error of the scheme.
    """

    def check(self, integrator: Integrator, grid: TimeGrid) -> None:
        """Raise `InputError` for a fixed-step scheme that is not Runge-Kutta."""
        if isinstance(integrator, FixedStep) and not isinstance(integrator, ExplicitRungeKutta):
            raise InputError(
                f"gradient adjoint: {integrator.name} is no Runge-Kutta scheme; take one (euler, rk4, ...), "
                "or gradient stored"
            )

    def backward_evaluations(self, integrator: FixedStep, grid: TimeGrid) -> tuple[Evaluation, ...]:
        """The stages of the backward steps, t_{k+1} - c_i h_k; c = 0 and 1 give the nodes bit for bit."""
        assert isinstance(integrator, ExplicitRungeKutta)
        steps = zip(grid.nodes, grid.nodes[1:], strict=False)
        return tuple(Evaluation((1 - c) * end + c * start) for start, end in steps for c in integrator.c)

    def integrate(self, chain: Chain, y: Tensor) -> Tensor:
        if not needs_backward():
            return super().integrate(chain, y)
        assert isinstance(chain, Flow)
        state: Tensor = _Adjoint.apply(self, chain, y, *chain.tensors())  # type: ignore[no-untyped-call]  # torch
        return state

    def footprint(self, steps: Sequence[StepBytes]) -> Footprint:
        """The last state; then state and costate with their slopes, and the operations of a step."""
        state = max(step.state for step in steps)
        return Footprint(state, state + max(2 * step.state + step.saved + step.flowing for step in steps))


class _Adjoint(torch.autograd.Function):
    """Forward without a graph; backward integrates (y, a) from the end."""

    @staticmethod
    def forward(ctx: Any, method: Adjoint, flow: Flow, y: Tensor, *tensors: Tensor) -> Tensor:
        state = method.integrate(flow, y)  # gradients are off here
        ctx.flow, ctx.autocast, ctx.snapshot = flow, current_autocast(y), flow.snapshot()
        ctx.save_for_backward(state)
        return state.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.flow.check_unchanged(ctx.snapshot)
        flow, leaves = ctx.flow.on_leaves()
        (y,), a = ctx.saved_tensors, gradients[0]
        sums: dict[int, Tensor] = {}
        with ctx.autocast():
            for k in reversed(range(flow.grid.steps)):
                y, a = _step_back(flow, k, y, a, sums)
        for leaf in leaves.values():  # the gradient is zero for what only forward evaluations touch
            if leaf.requires_grad and id(leaf) not in sums:
                sums[id(leaf)] = torch.zeros_like(leaf)
        by_leaf = {key: sums.get(id(leaf)) for key, leaf in leaves.items()}
        return None, None, a, *(by_leaf[id(t)] for t in ctx.flow.tensors())


def _step_back(flow: Flow, k: int, y: Tensor, a: Tensor, sums: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Step y and a from t_{k+1} to t_k; the quadrature of dL/dtheta is added to `sums`, by id of the leaf."""
    scheme, h = flow.integrator, flow.grid.step(k).h
    assert isinstance(scheme, ExplicitRungeKutta)
    first = len(flow.thetas) + (k - flow.grid.steps) * len(scheme.c)  # backward evaluations come last
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
            f = flow.evaluate(first + i, state, record=False)
        parameters = [t for t in flow.thetas[first + i].values() if t.requires_grad]
        found = torch.autograd.grad(f, (state, *parameters), costate.to(f.dtype), allow_unused=True)
        slopes.append((f.detach(), torch.zeros_like(a) if found[0] is None else found[0]))
        for parameter, g in zip(parameters, found[1:], strict=True):
            if g is not None and weight:
                known = sums.get(id(parameter))
                sums[id(parameter)] = weight * h * g if known is None else known + weight * h * g
    return combined(scheme.b)
