"""Dynamics: a network of dynamic blocks over time: equation, grids, and norms along a forward pass.

    |y(t_k)|, |f(theta(t), y)|, |theta(tau_j)|,    |x| the root mean square of the entries of x

so that stages of different sizes compare. The state is that at the state nodes, f is taken at each evaluation
of the scheme, theta at the control nodes. The stability number of a step is its length over the largest
linearly stable one (`resode.stability`); a step is stable where it is at most 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resode.blocks import DynamicBlock
from resode.controls import Theta
from resode.inputs import check_images
from resode.integrators import FixedStep
from resode.mode import mode
from resode.models import DynamicNet
from resode.stability import stability_numbers

Curve = tuple[tuple[float, float], ...]  # (time, value)


@dataclass(frozen=True)
class StageDynamics:
    """One stage over time; times continue from stage to stage.

    Args:
        stage: counted from 1.
        facts: its equation, scheme, grids and evaluations, as labels and texts.
        state: (t_k, |y|), mean over the images; empty without images.
        slope: (t, |f|) at the evaluations in order of time, mean over those at the same time; empty without
            images or with an adaptive solver.
        theta: (tau_j, |theta|).
        stability: (t_k, number of the step from t_k); empty where no bound is known.
    """

    stage: int
    facts: Mapping[str, str]
    state: Curve
    slope: Curve
    theta: Curve
    stability: Curve


def dynamics(
    net: DynamicNet, images: Tensor | None = None, size: tuple[int, int] = (32, 32)
) -> tuple[StageDynamics, ...]:
    """Equation, grids and norms over time of every stage.

    Args:
        net: the network; its mode and statistics are unchanged.
        images: one batch of its inputs (N, C, H, W) (default: none, and no norms of states).
        size: height and width of an image, where there is none.

    Raises:
        InputError: images that are no input of the network.

    Example:
        >>> net = DynamicNet([resode.Stage(8, "parabolic", "rk4", states=2)])
        >>> [time for time, _ in dynamics(net, torch.zeros(2, 3, 8, 8))[0].state]
        [0.0, 1.0, 2.0]
    """
    y = None
    if images is not None:
        y = check_images(net, images, channels=net.in_channels)
        size = (images.shape[2], images.shape[3])
    found = []
    clock = 0.0
    with torch.no_grad(), mode(net, training=False):
        y = None if y is None else net.stem(y)
        first, *after = net.between()
        if y is not None and first is not None:
            y = first(y)
        for number, (block, shape) in enumerate(zip(net.blocks(), net.sizes(*size), strict=True)):
            states = block.stage.states
            shift = clock - states.start
            state, slope, y = ((), (), None) if y is None else _along(block, y)
            found.append(
                StageDynamics(
                    number + 1,
                    dict(block.equation(*shape)),
                    _shifted(state, shift),
                    _shifted(slope, shift),
                    _shifted(theta_norms(block), shift),
                    _shifted(_stability(block, *shape), shift),
                )
            )
            clock += states.end - states.start
            connector = after[number]
            if y is not None and connector is not None:
                y = connector(y)
    return tuple(found)


def theta_norms(block: DynamicBlock) -> Curve:
    """(tau_j, |theta_j|) at the control nodes."""
    return tuple(
        (t, _parameters_norm(node)) for t, node in zip(block.controls.grid.nodes, block.controls, strict=True)
    )


def _parameters_norm(node: nn.Module) -> float:
    entries = [p.detach().double().flatten() for p in node.parameters()]
    return _norm(torch.cat(entries)) if entries else 0.0


def _norm(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _along(block: DynamicBlock, y: Tensor) -> tuple[Curve, Curve, Tensor]:
    """Norms of the states and of f along a forward pass, and the last state."""
    if not isinstance(block.stage.integrator, FixedStep):
        nodes, states = block.trajectory(y)
        return tuple(zip(nodes, map(_norm, states), strict=True)), (), states[-1]
    flow, slopes = block.flow(), dict[float, list[float]]()

    def field(e: int, theta: Theta | None, state: Tensor, record: bool) -> Tensor:
        value = flow.field(e, theta, state, record)
        slopes.setdefault(block.evaluations[e].time, []).append(_norm(value))
        return value

    states = [flow.state(carry) for carry in replace(flow, field=field).carries(y)]
    curve = tuple(zip(block.stage.states.nodes, map(_norm, states), strict=True))
    mean = ((time, sum(values) / len(values)) for time, values in sorted(slopes.items()))
    return curve, tuple(mean), states[-1]


def _stability(block: DynamicBlock, height: int, width: int) -> Iterator[tuple[float, float]]:
    numbers = stability_numbers(block.stage, block.controls, height, width)
    nodes: Sequence[float] = block.stage.states.nodes
    for time, number in zip(nodes, numbers, strict=False):
        if number is not None:
            yield time, number


def _shifted(curve: Curve | Iterator[tuple[float, float]], shift: float) -> Curve:
    return tuple((time + shift, value) for time, value in curve)
