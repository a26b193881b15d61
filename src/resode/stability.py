"""Linear stability: the largest step of a scheme for a known spectrum, and the warning beyond it.

On y' = lambda y a step of length h multiplies the solution by at most `growth(h lambda)`. A field may bound
the eigenvalues of its Jacobian (`spectrum`); the scheme is stable if the growth is at most 1 for all of them.
"""

import math
from collections.abc import Callable, Sequence

from torch import nn

from resode.controls import Controls
from resode.fields import Hamiltonian
from resode.integrators import FixedStep, StormerVerlet, SymplecticEuler
from resode.stages import Stage

Spectrum = tuple[float, float]  # (r, w): every eigenvalue is d (-r + i v) with 0 <= d <= 1 and |v| <= w


def stable_step(integrator: FixedStep, decay: float, rotation: float = 0.0) -> float:
    """The largest step h at which a scheme is linearly stable.

    For y' = lambda y (or y'' = lambda y) and all lambda = d (-decay + i v), 0 <= d <= 1, |v| <= rotation.
    """
    rays = [complex(-decay, rotation * x / 4) for x in range(5)]

    def stable(h: float) -> bool:
        z = h**2 if integrator.second_order else h
        return all(integrator.growth(z * ray * d / 16) <= 1 + 1e-9 for ray in rays for d in range(1, 17))

    scale = max(map(abs, rays))
    if scale == 0:
        return math.inf
    low, high = 0.0, 1.0 / scale
    # On imaginary spectra Heun, midpoint and AB2 grow by 1 + O(h^4): within the tolerance for small h, while
    # no step is stable. 1 / 64 shows it.
    if not stable(high / (1024 if decay else 64)):
        return 0.0
    while stable(high) and high < 1e6 / scale:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def stability_numbers(stage: Stage, controls: Controls, height: int, width: int) -> tuple[float | None, ...]:
    """For each step its length over the largest stable one; None where no bound is known.

    A step is linearly stable where its number is at most 1; inf: no step is. The largest stable step is that
    for theta at the control nodes between which the step lies.

    Args:
        stage: the stage.
        controls: its control nodes.
        height: the height of the state.
        width: the width of the state.
    """
    integrator, states = stage.integrator, stage.states
    if not isinstance(integrator, FixedStep) or not integrator.states_growth:
        return (None,) * states.steps
    limits = [
        None if spectrum is None else stable_step(integrator, *spectrum)
        for spectrum in (_spectrum(stage, controls, j, height, width) for j in range(len(controls)))
    ]
    return tuple(
        _number(states.intervals[k], [limits[j] for j in _nodes_of(controls, states.nodes[k : k + 2])])
        for k in range(states.steps)
    )


def _nodes_of(controls: Controls, times: Sequence[float]) -> range:
    """The control nodes that theta(t) depends on from the first to the last of these times."""
    touched = [j for t in times for j, _ in controls.weights(t)]
    return range(min(touched), max(touched) + 1)


def _number(h: float, limits: Sequence[float | None]) -> float | None:
    known = [limit for limit in limits if limit is not None]
    if len(known) < len(limits):
        return None
    return max(math.inf if limit == 0 else h / limit for limit in known)


def radii(controls: Controls, height: int, width: int) -> list[list[float | None]]:
    """For each control node, a bound on |df/dy| of each part whose Jacobian is known to be symmetric."""
    return [
        [_symmetric(_spectrum_of(controls.node(j, part), height, width)) for part in controls.parts]
        for j in range(len(controls))
    ]


def _symmetric(spectrum: Spectrum | None) -> float | None:
    return spectrum[0] if spectrum is not None and spectrum[1] == 0 else None


def stability_warning(stage: Stage, controls: Controls, height: int, width: int) -> str | None:
    """A warning if the longest step exceeds the linear stability bound of the scheme, else None.

    The bound is known only if the field has `spectrum(height, width)`. A Hamiltonian pair with Jacobians of
    norms r1 and r2 has eigenvalues i v with |v| <= sqrt(r1 r2).

    Args:
        stage: the stage.
        controls: its control nodes.
        height: the height of the state.
        width: the width of the state.
    """
    integrator, longest = stage.integrator, max(stage.states.intervals)
    found = (_spectrum(stage, controls, j, height, width) for j in range(len(controls)))
    known = [spectrum for spectrum in found if spectrum is not None]
    if not isinstance(integrator, FixedStep) or not integrator.states_growth or not known:
        return None
    limit = min(stable_step(integrator, *spectrum) for spectrum in known)
    if longest <= limit:
        return None
    radius = max(math.hypot(*spectrum) for spectrum in known)
    where = f"a spectral radius of at most {radius:.3g}, the step {longest:.3g}"
    if limit == 0:
        real = any(r > 0 for r, _ in known)
        fix = "euler, heun, ssprk3 or rk4" if real else "rk4, ssprk3 or a gamma above 0"
        return f"{integrator.name} is unstable for this field at every step ({where}): take {fix}"
    factor = math.ceil(longest / limit)
    bound = f"h^2 = {limit**2:.3g}" if integrator.second_order else f"h = {limit:.3g}"
    fix = f"divide its steps by {factor} (TimeGrid.refine({factor})), or scale the kernels down"
    return f"{integrator.name} is linearly stable up to {bound} ({where}): {fix}"


def _spectrum(stage: Stage, controls: Controls, j: int, height: int, width: int) -> Spectrum | None:
    """The spectrum of the field at control node j, if it is known."""
    known = [_spectrum_of(controls.node(j, part), height, width) for part in controls.parts]
    if len(known) == 1:
        return None if isinstance(stage.field, Hamiltonian) else known[0]
    if not isinstance(stage.integrator, SymplecticEuler | StormerVerlet):
        return None
    radii = [spectrum[0] for spectrum in known if spectrum is not None and spectrum[1] == 0]
    return (0.0, math.sqrt(math.prod(radii))) if len(radii) == len(known) else None


def _spectrum_of(node: nn.Module, height: int, width: int) -> Spectrum | None:
    known: Callable[[int, int], Spectrum | None] | None = getattr(node, "spectrum", None)
    return known(height, width) if known is not None else None
