"""Integrators and their registry; `@integrators.register("name", summary="...")` adds one of your own."""

from resode.integrators.base import Evaluation, FixedStep, Integrator, integrators, solve

# In the order of `resode list integrators`.
# isort: off
from resode.integrators.runge_kutta import SSPRK3, RK4, Euler, ExplicitRungeKutta, Heun, Midpoint
from resode.integrators.multistep import (
    AdamsBashforth2,
    Leapfrog,
    LearnedTwoStep,
    Momentum,
    TwoStep,
    TwoStepMidpoint,
)
from resode.integrators.projected import Projected, ProjectedEuler
from resode.integrators.partitioned import Coupling, StormerVerlet, SymplecticEuler
from resode.integrators.semi_implicit import IMEX
from resode.integrators.adaptive import Adaptive
# isort: on

__all__ = [
    "IMEX",
    "RK4",
    "SSPRK3",
    "AdamsBashforth2",
    "Adaptive",
    "Coupling",
    "Euler",
    "Evaluation",
    "ExplicitRungeKutta",
    "FixedStep",
    "Heun",
    "Integrator",
    "Leapfrog",
    "LearnedTwoStep",
    "Midpoint",
    "Momentum",
    "Projected",
    "ProjectedEuler",
    "StormerVerlet",
    "SymplecticEuler",
    "TwoStep",
    "TwoStepMidpoint",
    "integrators",
    "solve",
]
