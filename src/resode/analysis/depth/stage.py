"""Stage: one stage against its own flow, from the states that the network gives it, in float64."""

import math
from statistics import median

import torch
from torch import Tensor, nn

from resode.analysis.depth.convergence import FACTORS, Products
from resode.analysis.depth.growth import IMAGES, growth, growth_bound
from resode.analysis.depth.passes import Passes
from resode.analysis.depth.record import Point, StageDepth, Thresholds
from resode.analysis.depth.schemes import is_multistep
from resode.analysis.depth.smoothness import smoothness
from resode.analysis.depth.solution import Solution, finer, integrated_back, scheme_of, steps_of
from resode.analysis.depth.verdict import allowed_orders
from resode.analysis.dynamics import theta_norms
from resode.blocks import DynamicBlock
from resode.fields.activations import activation
from resode.fields.convolutions import ConvolutionalField

SMOOTH_LAYERS = (
    nn.Conv2d, nn.Linear, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus, nn.Mish, nn.Identity,
    nn.BatchNorm2d, nn.GroupNorm,
)  # fmt: skip


class StageMeasurement:
    """Collects what is measured of one stage, batch by batch.

    Args:
        number: of the stage, from 1.
        block: in float64 and in evaluation mode, its parameters without gradients.
        passes: counts the forward passes.
    """

    def __init__(self, number: int, block: DynamicBlock, passes: Passes) -> None:
        self.number, self.block, self.passes = number, block, passes
        scheme = scheme_of(block)
        self._solutions = {
            factor: Solution(block, scheme, steps_of(finer(block, factor))) for factor in FACTORS[1:]
        }
        self._products = Products()
        self._growth: list[float] = []
        self._reversal: list[Tensor] = []
        self._size: tuple[int, int] = (1, 1)

    @torch.no_grad()
    def add(self, y: Tensor, difference: Tensor | None = None) -> Tensor:
        """Add states at the start of the stage, and y_0 - y_{-1}; returns those at its end."""
        self._size = (y.shape[2], y.shape[3])
        own = len(self.block.evaluations)
        end, start = integrated_back(self.block, y, difference)
        self.passes.count(len(y), 2 * own)
        states = {1: end}
        for factor, solution in self._solutions.items():
            states[factor] = solution(y, difference)
            self.passes.count(len(y), solution.evaluations)
        self._products.add(y, states)
        tiny = torch.finfo(y.dtype).tiny
        self._reversal.append(
            ((start - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1).clamp_min(tiny)).cpu()
        )
        if len(self._growth) < IMAGES:
            some = y[: IMAGES - len(self._growth)]
            self._growth += growth(self.block, some)
            self.passes.count(len(some), own)
        return end

    def result(self, thresholds: Thresholds) -> StageDepth:
        """What was found."""
        block, stage = self.block, self.block.stage
        scheme, smooth = scheme_of(block), is_smooth(block)
        found = self._products.convergence()
        low, high = allowed_orders(scheme.order, smooth, thresholds)
        return StageDepth(
            stage=self.number,
            field=stage.field.name,
            equation=stage.field.equation,
            scheme=scheme.name,
            steps=stage.states.steps,
            interpolation=stage.interpolation,
            declared_order=scheme.order,
            smooth=smooth,
            order_low=low,
            order_high=high,
            observed_order=found.order,
            observed_low=found.low,
            observed_high=found.high,
            exact=found.exact,
            distance=found.distances[1],
            distances=dict(found.distances),
            smoothness=smoothness(block.controls),
            reversal=_finite(float(torch.cat(self._reversal).median())),
            inverse=scheme.reversible,
            growth=_finite(median(self._growth)),
            growth_largest=_finite(max(self._growth)),
            growth_bound=growth_bound(block, *self._size),
            theta=tuple(Point(time, norm) for time, norm in theta_norms(block)),
        )


def is_smooth(block: DynamicBlock) -> bool:
    """Whether f is known to be smooth along the steps.

    s and the normalisation are, no projection acts on y, and no multistep scheme takes slopes from beyond a
    jump of theta(t).
    """
    controls = block.controls
    jumps = controls.interpolation == "constant" and len(controls) > 1
    if scheme_of(block).projects or (jumps and is_multistep(scheme_of(block))):
        return False
    field = block.stage.field
    if isinstance(field, ConvolutionalField):
        return activation(field.activation).smooth
    leaves = [m for m in controls.node(0, controls.parts[0]).modules() if type(m) is not nn.Sequential]
    return all(type(leaf) in SMOOTH_LAYERS for leaf in leaves)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
