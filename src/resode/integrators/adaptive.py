"""Adaptive solvers from torchdiffeq (Chen et al. 2018, arXiv:1806.07366): the tolerances choose the steps.

A step whose estimated error exceeds atol + rtol |y| is repeated with a shorter h. The number of evaluations
depends on the data, so the times are not known in advance. Steps end at the nodes of the grid, where states
are returned, and f is never evaluated beyond the last node. Gradients treat the step lengths as constants.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resode.errors import DivergenceError, InputError, nearest
from resode.grids import TimeGrid
from resode.integrators.base import Integrator, integrators

METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


@integrators.register(
    "adaptive", summary="dopri5 and others from torchdiffeq, steps chosen by the tolerances"
)
@dataclass(frozen=True)
class Adaptive(Integrator):
    """An adaptive solver with tolerances and a limit on the number of steps.

    Args:
        method: dopri5, dopri8, bosh3, fehlberg2 or adaptive_heun.
        rtol: the relative tolerance of a step.
        atol: the absolute tolerance of a step.
        max_steps: the largest number of steps of one solution, rejected steps included.

    Raises:
        InputError: another method (fixed-step methods are integrators of their own), or a tolerance or limit
            that is not positive.
    """

    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-4
    max_steps: int = 1000

    equation = "y' = f(t, y), each step within atol + rtol |y|"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            near = nearest(str(self.method), METHODS)
            raise InputError(f"{self.name}: unknown method '{self.method}'{near} ({', '.join(METHODS)})")
        for tolerance in ("rtol", "atol"):
            value = getattr(self, tolerance)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{self.name}: {tolerance} {value!r}; a positive number is needed")
        if not isinstance(self.max_steps, int) or isinstance(self.max_steps, bool) or self.max_steps < 1:
            raise InputError(f"{self.name}: max_steps {self.max_steps!r}; a positive integer is needed")

    @property
    def order(self) -> None:
        """None: the tolerances determine the error."""
        return

    @property
    def name(self) -> str:
        return f"Adaptive {self.method}"

    @property
    def tolerances(self) -> str:
        """What decides the number of evaluations, `rtol 0.001, atol 0.0001`."""
        return f"rtol {self.rtol:g}, atol {self.atol:g}"

    def integrate(
        self,
        f: Callable[[float, Tensor], Tensor],
        y: Tensor,
        grid: TimeGrid,
        *,
        adjoint_parameters: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Solve for the states at the nodes of the grid, in float32 or higher.

        Args:
            f: `f(t, y)`, with the shape of y; its input has the dtype of y.
            y: the initial state.
            grid: the nodes at which states are returned; the solver takes as many steps between two nodes as
                it needs.
            adjoint_parameters: the tensors that f depends on besides y. With them the gradient is the
                continuous adjoint, solved backwards by the same method and limits (default: None,
                backpropagation through the accepted steps).

        Returns:
            A tensor (n + 1, *y.shape) in the dtype of y, whose first row is y.

        Raises:
            InputError: torchdiffeq is not installed.
            DivergenceError: more than `max_steps` steps, a step too short to change t, or a state that is not
                finite, in the forward pass or in the continuous adjoint.
        """
        self.check(grid)
        library = _torchdiffeq()
        times = torch.tensor(grid.nodes, dtype=torch.float64, device=y.device)
        guarded = _Guarded(f, self, grid.start, y.dtype)
        start = y.to(torch.promote_types(y.dtype, torch.float32))
        chosen: dict[str, Any] = {
            "rtol": self.rtol,
            "atol": self.atol,
            "method": self.method,
            "options": {
                "max_num_steps": min(self.max_steps + 1, 2**31 - 1),
                "step_t": times,
                "first_step": self._first_step(guarded, start, grid),
            },
        }
        if adjoint_parameters is None:
            states: Tensor = library.odeint(guarded, start, times, **chosen)
        else:
            states = library.odeint_adjoint(
                guarded, start, times, **chosen, adjoint_params=adjoint_parameters
            )
        return states.to(y.dtype)

    @torch.no_grad()
    def _first_step(self, guarded: "_Guarded", y: Tensor, grid: TimeGrid) -> float:
        """The length of a step that changes y by one percent (Hairer, Norsett & Wanner 1993, II.4).

        torchdiffeq's own first step is a differentiable function of f. Times are floats here, so half of that
        derivative would be missing and the gradient wrong.
        """
        slope, scale = guarded.at(grid.start, y), self.atol + self.rtol * y.abs()
        size, speed = (float((x / scale).square().mean().sqrt()) for x in (y, slope))
        longest = grid.intervals[0]
        return min(0.01 * size / speed, longest) if min(size, speed) > 1e-5 else 0.01 * longest


class _Guarded:
    """f in the form that torchdiffeq calls, with callbacks that check the limits before each step.

    torchdiffeq's own limits are assertions: they have no exception type and vanish under `python -O`.
    """

    def __init__(
        self, f: Callable[[float, Tensor], Tensor], solver: Adaptive, start: float, dtype: torch.dtype
    ) -> None:
        self.f, self.solver, self.start, self.dtype = f, solver, start, dtype
        self.forwards = self.backwards = 0

    def at(self, t: float, y: Tensor) -> Tensor:
        return self.f(t, y.to(self.dtype)).to(y.dtype)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.at(float(t.detach()), y)

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._check(self.forwards, t, h, y)
        self.forwards += 1

    def callback_step_adjoint(self, t: Tensor, y: tuple[Tensor, ...], h: Tensor) -> None:
        self._check(self.backwards, t, h, *y)
        self.backwards += 1

    def callback_accept_step_adjoint(self, t: Tensor, y: tuple[Tensor, ...], h: Tensor) -> None:
        if float(t - h) <= self.start:  # the same graph may be run backwards again
            self.backwards = 0

    def _check(self, made: int, t: Tensor, h: Tensor, *states: Tensor) -> None:
        solver = self.solver
        fix = "weaken the field (weight decay, a shorter time) or raise rtol and atol"
        if made >= solver.max_steps:
            raise DivergenceError(
                f"{solver.name}: stopped at t = {float(t):g} after max_steps = {solver.max_steps} steps; "
                f"{fix}, or max_steps"
            )
        if not all(bool(state.isfinite().all()) for state in states):
            raise DivergenceError(f"{solver.name}: the state at t = {float(t):g} is not finite; {fix}")
        if not bool(t + h > t):
            raise DivergenceError(f"{solver.name}: no step at t = {float(t):g} is short enough; {fix}")


def _torchdiffeq() -> Any:
    try:
        return importlib.import_module("torchdiffeq")
    except (ImportError, RuntimeError):
        raise InputError("adaptive solvers need torchdiffeq: pip install 'resode[ode]'") from None
