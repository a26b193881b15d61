"""Adaptive solvers of torchdiffeq (Chen et al. 2018, arXiv:1806.07366): the tolerances choose the steps.

A step whose estimated error exceeds atol + rtol |y| is made again with a shorter h. How often f is evaluated
depends on the data, so the times are not known beforehand. Steps end at the nodes of the grid, where states
come out, and f is never evaluated beyond the last. The gradient takes the lengths of the steps as given.
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
from resode.integrators.base import Integrator

METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


@dataclass(frozen=True)
class Adaptive(Integrator):
    """A black-box adaptive solver; tolerances and a bound on the steps are always set.

    Args:
        method: dopri5, dopri8, bosh3, fehlberg2 or adaptive_heun.
        rtol: the relative tolerance of a step.
        atol: the absolute tolerance of a step.
        max_steps: how many steps, rejected ones included, one solution may take.

    Raises:
        InputError: another method (a fixed one is an integrator of its own), tolerances or a bound that
            cannot be.
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
        """None: the error follows the tolerances."""
        return

    @property
    def name(self) -> str:
        return f"Adaptive {self.method}"

    def integrate(
        self,
        f: Callable[[float, Tensor], Tensor],
        y: Tensor,
        grid: TimeGrid,
        *,
        adjoint_parameters: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """The states at the nodes of the grid, solved in float32 at least, in the dtype of y.

        Args:
            f: `f(t, y)`, of the shape of y; it receives the dtype of y.
            y: the initial state.
            grid: where states come out and steps end; between two nodes there are as many as it takes.
            adjoint_parameters: what f depends on besides y; given, the gradient is that of the continuous
                adjoint, solved backwards by the same method and bounds; left out, backpropagation through
                the steps that were accepted.

        Returns:
            A tensor (n + 1, *y.shape), the first of them y.

        Raises:
            InputError: torchdiffeq is not installed.
            DivergenceError: more than `max_steps` steps, a step too short to change t, or a state that is not
                finite, forwards or (continuous adjoint) backwards.
        """
        self.check(grid)
        library = _torchdiffeq()
        times = torch.tensor(grid.nodes, dtype=torch.float64, device=y.device)
        watched = _Watched(f, self, grid.start, y.dtype)
        start = y.to(torch.promote_types(y.dtype, torch.float32))
        chosen: dict[str, Any] = {
            "rtol": self.rtol,
            "atol": self.atol,
            "method": self.method,
            "options": {
                "max_num_steps": min(self.max_steps + 1, 2**31 - 1),
                "step_t": times,
                "first_step": self._first_step(watched, start, grid),
            },
        }
        if adjoint_parameters is None:
            states: Tensor = library.odeint(watched, start, times, **chosen)
        else:
            states = library.odeint_adjoint(
                watched, start, times, **chosen, adjoint_params=adjoint_parameters
            )
        return states.to(y.dtype)

    @torch.no_grad()
    def _first_step(self, watched: "_Watched", y: Tensor, grid: TimeGrid) -> float:
        """A step that changes y by a hundredth of itself (Hairer, Norsett & Wanner 1993, II.4).

        The library's own first step depends on f differentiably, but times are floats here: half of that
        derivative would be missing, and the gradient wrong.
        """
        slope, scale = watched.at(grid.start, y), self.atol + self.rtol * y.abs()
        size, speed = (float((x / scale).square().mean().sqrt()) for x in (y, slope))
        longest = grid.intervals[0]
        return min(0.01 * size / speed, longest) if min(size, speed) > 1e-5 else 0.01 * longest


class _Watched:
    """f as torchdiffeq calls it, and the bounds, told of each step before it is made.

    The library's own bounds are assertions, which leave no type to catch and vanish under `python -O`.
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
        mend = "weaken the field (weight decay, a shorter time) or raise rtol and atol"
        if made >= solver.max_steps:
            raise DivergenceError(
                f"{solver.name}: stopped at t = {float(t):g} after max_steps = {solver.max_steps} steps; "
                f"{mend}, or max_steps"
            )
        if not all(bool(state.isfinite().all()) for state in states):
            raise DivergenceError(f"{solver.name}: the state at t = {float(t):g} is not finite; {mend}")
        if not bool(t + h > t):
            raise DivergenceError(f"{solver.name}: no step at t = {float(t):g} is short enough; {mend}")


def _torchdiffeq() -> Any:
    try:
        return importlib.import_module("torchdiffeq")
    except (ImportError, RuntimeError):
        raise InputError("adaptive solvers need torchdiffeq: pip install 'resode[ode]'") from None
