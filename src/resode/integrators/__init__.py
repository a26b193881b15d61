"""Integrators and their registry; `@integrators.register("name", summary="...")` adds one of your own."""

from collections.abc import Callable

from resode.integrators.adaptive import Adaptive
from resode.integrators.base import Evaluation, FixedStep, Integrator, solve
from resode.integrators.multistep import (
    AdamsBashforth2,
    Leapfrog,
    LearnedTwoStep,
    Momentum,
    TwoStep,
    TwoStepMidpoint,
)
from resode.integrators.partitioned import Coupling, StormerVerlet, SymplecticEuler
from resode.integrators.runge_kutta import EULER, HEUN, MIDPOINT, RK4, SSPRK3, ExplicitRungeKutta
from resode.integrators.semi_implicit import IMEX
from resode.registry import Registry

__all__ = [
    "EULER",
    "HEUN",
    "IMEX",
    "MIDPOINT",
    "RK4",
    "SSPRK3",
    "AdamsBashforth2",
    "Adaptive",
    "Coupling",
    "Evaluation",
    "ExplicitRungeKutta",
    "FixedStep",
    "Integrator",
    "Leapfrog",
    "LearnedTwoStep",
    "Momentum",
    "StormerVerlet",
    "SymplecticEuler",
    "TwoStep",
    "TwoStepMidpoint",
    "integrators",
    "solve",
]

BUILT_IN: tuple[tuple[str, Callable[..., Integrator], str], ...] = (
    ("euler", lambda: EULER, "forward Euler, order 1: a ResNet where h = 1"),
    ("midpoint", lambda: MIDPOINT, "explicit midpoint, order 2"),
    ("heun", lambda: HEUN, "Heun's method, order 2"),
    ("ssprk3", lambda: SSPRK3, "strong-stability-preserving Runge-Kutta, order 3"),
    ("rk4", lambda: RK4, "the classical Runge-Kutta method, order 4"),
    ("runge_kutta", ExplicitRungeKutta, "an explicit Runge-Kutta method from your own tableau"),
    ("adams_bashforth2", AdamsBashforth2, "Adams-Bashforth with variable steps, order 2"),
    ("learned_two_step", LearnedTwoStep, "LM-ResNet: two steps with a learned weight"),
    ("two_step_midpoint", TwoStepMidpoint, "two-step midpoint, order 2, reversible, equal steps"),
    ("leapfrog", Leapfrog, "leapfrog for y'' = f, order 2, reversible"),
    ("momentum", Momentum, "momentum ResNet, order 1, reversible"),
    ("symplectic_euler", SymplecticEuler, "Hamiltonian on two halves, order 1, reversible"),
    ("stormer_verlet", StormerVerlet, "Hamiltonian on two halves, order 2, reversible"),
    ("coupling", Coupling, "RevNet on two halves, reversible"),
    ("imex", IMEX, "semi-implicit: a learned smoothing solved exactly by FFT, order 1"),
    ("adaptive", Adaptive, "dopri5 and others from torchdiffeq, steps chosen by the tolerances"),
)

integrators: Registry[Integrator] = Registry("integrator", "integrators")
for _name, _factory, _summary in BUILT_IN:
    integrators.register(_name, summary=_summary)(_factory)
