"""Solution: the equation of a block, solved in other steps or by another scheme with the same theta(t).

    y' = f(theta(t), y),   theta(t) as the network has it

Piecewise constant controls jump at their nodes: a step takes the piece in which it lies, also for evaluations
at its end, or else every scheme would fall back to order 1. Learned coefficients of a scheme are constant on
each old step. Running statistics are kept (`AffineMaps`) or estimated anew, a set for each evaluation.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resode.analysis.depth.normalisation import AffineMaps
from resode.blocks import DynamicBlock
from resode.controls import Theta, interpolation_weights
from resode.grids import Step, TimeGrid
from resode.integrators import FixedStep, TwoStepMidpoint
from resode.integrators.base import Carry, Evaluation, RightHandSide, of_step
from resode.models import DynamicNet
from resode.statistics import Statistics, running_statistics

Choice = Callable[[DynamicBlock], tuple[FixedStep, TimeGrid]]  # the scheme and the grid for a block


def scheme_of(block: DynamicBlock) -> FixedStep:
    """The scheme of a block, which has fixed steps."""
    integrator = block.stage.integrator
    assert isinstance(integrator, FixedStep)
    return integrator


def finer(block: DynamicBlock, factor: int) -> TimeGrid:
    """The state grid with each step divided into `factor`; no step has a control node inside.

    The two-step midpoint rule needs equal steps, so its grid is only refined.
    """
    states, nodes = block.stage.states, block.controls.grid.nodes
    if not isinstance(block.stage.integrator, TwoStepMidpoint):
        inside = {states.snap(t) for t in nodes if states.start < t < states.end}
        states = TimeGrid(tuple(sorted(inside | set(states.nodes))))
    return states.refine(factor)


def solving(net: DynamicNet, choose: Choice, *, anew: bool = False) -> nn.Module:
    """A copy of a network whose blocks are solved otherwise.

    Args:
        net: the network; unchanged.
        choose: the scheme and the grid for each block.
        anew: give every evaluation running statistics of its own, which have to be estimated
            (`estimate_statistics`); default: keep those of the network.
    """
    made = copy.deepcopy(net).requires_grad_(False)
    for number, block in enumerate(tuple(made.blocks())):
        integrator, grid = choose(block)
        made.stages[number] = Solution(block, integrator, steps_of(grid), anew=anew)
    return made.eval()


def steps_of(grid: TimeGrid) -> tuple[Step, ...]:
    """The steps of a grid."""
    return tuple(grid.step(k) for k in range(grid.steps))


def reversed_steps(grid: TimeGrid) -> tuple[Step, ...]:
    """The steps of a grid from its end to its start, of negative length."""
    lengths = grid.intervals[::-1]
    ends = grid.nodes[::-1]
    return tuple(Step(ends[k], ends[k + 1], -lengths[k - 1] if k else None) for k in range(grid.steps))


class Solution(nn.Module):
    """y(t_0) -> y(t_n) by a scheme in given steps, with theta(t) of a block.

    Args:
        block: whose equation is solved.
        integrator: the scheme; one other than the block's has no learned coefficients.
        steps: one after another; their length may be negative.
        anew: whether every evaluation has running statistics of its own.
    """

    def __init__(
        self, block: DynamicBlock, integrator: FixedStep, steps: Sequence[Step], *, anew: bool = False
    ) -> None:
        super().__init__()
        self.controls, self.integrator, self.steps = block.controls, integrator, tuple(steps)
        self.scheme = block.scheme if integrator == block.stage.integrator else nn.ParameterDict()
        states = block.stage.states
        self._own_steps, self._own_step = states.steps, states.step(0).h
        self._rows = tuple(states.interval_of((s.t + s.end) / 2) for s in self.steps)
        self._evaluations = tuple(integrator.evaluations(s) for s in self.steps)
        self._own = anew and len(block.statistics) > 0
        maps = AffineMaps(block)
        self._thetas = tuple(
            tuple(self._theta(e, (s.t + s.end) / 2, maps) for e in listed)
            for s, listed in zip(self.steps, self._evaluations, strict=True)
        )
        self.statistics = nn.ModuleList(
            Statistics(running_statistics(block.controls.node(0, e.part)))
            for listed in (self._evaluations if self._own else ())
            for e in listed
        )
        lengths = [len(listed) for listed in self._evaluations]
        self._offsets = tuple(sum(lengths[:k]) for k in range(len(lengths)))

    @property
    def evaluations(self) -> int:
        """How often the field is called in a forward pass, each part counted."""
        shared = (len(self.steps) - 1) * self.integrator.first_same_as_last
        return sum(map(len, self._evaluations)) - shared

    @torch.no_grad()
    def _theta(self, e: Evaluation, middle: float, maps: AffineMaps) -> Theta:
        """theta(t) in the piece of the step's middle, with the affine maps of normalisations."""
        controls = self.controls
        constant = controls.interpolation == "constant"
        time = middle if constant else e.time
        weights = interpolation_weights(controls.grid, controls.interpolation, time)
        kept = {} if self._own else maps.tensors(e.part, e.time, middle)
        return {**controls.combined(weights, e.part), **kept}

    def forward(self, y: Tensor, difference: Tensor | None = None) -> Tensor:
        if difference is not None:  # y_{-1} is one step before y_0, in steps of any length
            difference = difference * (self.steps[0].h / self._own_step)
        carry = self.integrator.start(y, difference)
        for k, s in enumerate(self.steps):
            coefficients = of_step(dict(self.scheme.items()), self._rows[k], self._own_steps)
            carry = self.integrator.step(s, self._right_hand_side(k), carry, coefficients)
        return self.integrator.state(carry)

    def _right_hand_side(self, k: int) -> RightHandSide:
        def f(i: int, y: Tensor) -> Tensor:
            own = self.statistics[self._offsets[k] + i] if self._own else None
            statistics = own.tensors() if isinstance(own, Statistics) else {}
            node = self.controls.node(0, self._evaluations[k][i].part)
            value: Tensor = functional_call(node, {**self._thetas[k][i], **statistics}, (y,))
            return value

        return f


@torch.no_grad()
def integrated_back(
    block: DynamicBlock, y: Tensor, difference: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The last state from y, and the first state that integrating back from it gives.

    A scheme with an inverse is inverted; others make their steps with -h.
    """
    flow, integrator = block.flow(difference), scheme_of(block)
    carry: Carry = flow.start(y)
    for k in range(flow.steps):
        carry = flow.step(k, carry, record=False)
    end = flow.state(carry)
    if integrator.reversible:
        for k in reversed(range(flow.steps)):
            carry = flow.inverse(k, carry)
        return end, flow.state(carry)
    back: Tensor = Solution(block, integrator, reversed_steps(block.stage.states))(end)
    return end, back
