"""Re-gridding: the same theta(t) and the same flow on other time grids (prolongation and restriction).

The new network evaluates the old theta(t) at its control nodes; learned coefficients of a scheme are constant
on each old step; running statistics start as those of the nearest old evaluation and have to be re-estimated.
What is linear in the parameters (momentum, averages, gradients) is transferred by the same map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resode.blocks import DynamicBlock
from resode.controls import DEGREES, check_interpolation, interpolation_weights
from resode.errors import InputError
from resode.gradients import Checkpointed, Gradient
from resode.grids import TimeGrid
from resode.inputs import check_images
from resode.integrators.base import Evaluation
from resode.models.dynamic import DynamicNet
from resode.stages import Stage
from resode.statistics import estimate_statistics

Tensors = Mapping[str, Tensor]
Combination = tuple[tuple[int, float], ...]  # (old node, weight)
NEGLIGIBLE = 1e-12  # a weight that only rounding makes
BATCH = 256  # images a batch on which statistics are estimated


@dataclass(frozen=True)
class TensorSource:
    """The old tensors from which one tensor of the new network is computed.

    Args:
        names: of the old tensors.
        weights: of the second of two to interpolate between, or of all of several to add; none for one.
        rows: the row of the old tensor for each row of the new one (default: all).
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] = ()
    rows: tuple[int, ...] | None = None

    def is_in(self, tensors: Tensors) -> bool:
        """Whether all its old tensors are given."""
        return all(name in tensors for name in self.names)

    def compute(self, tensors: Tensors) -> Tensor:
        """The new tensor."""
        first = tensors[self.names[0]]
        if len(self.weights) == 1:
            return torch.lerp(first, tensors[self.names[1]], self.weights[0])
        if self.weights:
            terms = zip(self.weights, self.names, strict=True)
            return torch.stack([w * tensors[name] for w, name in terms]).sum(0)
        return first.clone() if self.rows is None or not first.ndim else first[list(self.rows)]


@dataclass(frozen=True)
class Regridding:
    """A network on new grids, and the linear map from the old tensors to the new ones.

    Args:
        module: the new network, with the old one's theta(t).
        sources: for each name of the new `state_dict`, the old tensors it is computed from.
    """

    module: DynamicNet
    sources: Mapping[str, TensorSource]

    def __repr__(self) -> str:
        grids = "; ".join(str(block.stage.states) for block in self.module.blocks())
        mixed = sum(len(source.names) > 1 for source in self.sources.values())
        return f"Regridding(states {grids}; {len(self.sources)} tensors, {mixed} interpolated)"

    @torch.no_grad()
    def transfer(self, tensors: Tensors) -> dict[str, Tensor]:
        """Map tensors by old parameter names (an optimizer's momentum, say) to tensors by new names."""
        return {
            name: source.compute(tensors) for name, source in self.sources.items() if source.is_in(tensors)
        }


def regrid(
    net: DynamicNet, *, states: Any = None, controls: Any = None, images: Tensor | None = None
) -> DynamicNet:
    """A copy of a network on other time grids: the same theta(t), the same flow.

    Args:
        net: the old network; unchanged.
        states: `"double"`, `"halve"`, nodes (from the old start to the old end), or None to keep them; a list
            of these gives one for each stage.
        controls: the same for the control nodes; `"states"` puts one at each state node that is evaluated.
        images: inputs (N, C, H, W) on which running statistics are estimated anew, some thousand training
            images say (default: those of the nearest old evaluation, good enough to train on). uint8 images
            are taken for a network that was loaded, with its `preprocessing`.

    Raises:
        InputError: a network without time grids, a number of steps that cannot be halved, other end points,
            control nodes that no evaluation touches, or images that are no input of the network.

    Example:
        >>> net = DynamicNet([Stage(8, "parabolic", "rk4", states=2)])
        >>> regrid(net, states="double").stages[0].stage.states.steps
        4
    """
    new = regridding(net, states=states, controls=controls).module
    if images is not None:
        estimate_on(new, images)
    return new


def estimate_on(net: DynamicNet, images: Tensor) -> None:
    """Estimate running statistics anew on images (N, C, H, W), uint8 for a network that was loaded."""
    inputs = _inputs(net, images)
    estimate_statistics(net, inputs.tensor_split(-(-len(inputs) // BATCH)))  # of equal size, up to one


def _inputs(net: DynamicNet, images: Any) -> Tensor:
    """Images as the network takes them."""
    preprocessing = getattr(net, "preprocessing", None)
    if isinstance(images, Tensor) and images.dtype == torch.uint8 and preprocessing is not None:
        images = preprocessing(images)
    return check_images(net, images, "images", net.in_channels)


def regridding(net: DynamicNet, *, states: Any = None, controls: Any = None) -> Regridding:
    """A network on other time grids, and the map of its tensors; arguments as for `regrid`."""
    if not isinstance(net, DynamicNet):
        raise InputError(f"regrid: a {type(net).__name__} has no time grids; give a DynamicNet")
    blocks = list(net.blocks())
    by_stage = zip(blocks, _each(states, len(blocks)), _each(controls, len(blocks)), strict=True)
    stages = [_new_stage(number, block, s, c) for number, (block, s, c) in enumerate(by_stage)]
    try:
        return _moved(net, stages)
    except InputError as error:
        fix = "controls='states' (--controls states) puts control nodes where the new states need them"
        raise InputError(*error.messages, fix) from None


def fitting(net: DynamicNet, controls: int, interpolation: str = "linear") -> Regridding:
    """A network with fewer controls, whose theta(t) is nearest to the old one's at its evaluations.

        minimise  sum_e |theta(t_e) - sum_j B_j(t_e) c_j|^2      over the new controls c_j, stage by stage

    State grids and running statistics stay; estimate these anew before the network is used. As many controls
    as a stage has times of evaluation give the old theta there.

    Args:
        net: with fixed steps; unchanged.
        controls: of each stage; fewer where a stage has fewer times of evaluation.
        interpolation: linear, constant, quadratic or cubic.

    Raises:
        InputError: no network of dynamic blocks with fixed steps, no positive number, or another
            interpolation.
    """
    if not isinstance(net, DynamicNet):
        raise InputError(f"controls: a {type(net).__name__} has none; give a DynamicNet, or lift it first")
    if type(controls) is not int or controls < 1:
        raise InputError(f"controls {controls!r}: a positive integer is needed")
    if check_interpolation(interpolation) == "shared":
        raise InputError("interpolation shared has one control: give controls=1 and constant")
    stages, combinations = [], []
    for number, block in enumerate(net.blocks(), start=1):
        if not block.evaluations:
            raise InputError(f"stage {number}: {block.stage.integrator.name} chooses its own times")
        times = sorted({evaluation.time for evaluation in block.evaluations})
        grid = _fewer(times, min(controls, len(times)), interpolation)
        theta = [block.controls.weights(time) for time in times]
        stages.append(replace(block.stage, controls=grid, interpolation=interpolation, keep_unused=False))
        combinations.append(_fitted(grid, interpolation, times, theta, len(block.controls)))
    return _moved(net, stages, combinations)


def _fewer(times: Sequence[float], count: int, interpolation: str) -> TimeGrid:
    """The nodes of so many controls, from the first to the last time."""
    if count == 1:
        return TimeGrid((times[0],))
    if interpolation == "constant":
        return TimeGrid(tuple(times[k * len(times) // count] for k in range(count)))
    if count == len(times):
        return TimeGrid(tuple(times))
    return TimeGrid.uniform(count - 1, times[-1], times[0])


def _moved(
    net: DynamicNet, stages: Sequence[Stage], combinations: Sequence[Sequence[Combination]] | None = None
) -> Regridding:
    """The network with other stages, and the map of its tensors.

    Args:
        net: the old network.
        stages: of the new one.
        combinations: for each stage and each new control node, the old ones (default: theta(t) there).
    """
    blocks = list(net.blocks())
    new = net.with_stages(stages)
    reference = next(net.parameters())
    new.to(dtype=reference.dtype, device=reference.device).train(net.training)
    sources = {name: TensorSource((name,)) for name in net.state_dict()}
    for number, (old, fresh) in enumerate(zip(blocks, new.blocks(), strict=True)):
        prefix = f"stages.{number}."
        for name in [n for n in sources if n.startswith(prefix)]:
            del sources[name]
        chosen = None if combinations is None else combinations[number]
        sources |= {prefix + name: source for name, source in _block_sources(prefix, old, fresh, chosen)}
    result = Regridding(new, {name: sources[name] for name in new.state_dict()})
    new.load_state_dict(result.transfer(net.state_dict()))
    _copy_modes(net, result)
    if (preprocessing := getattr(net, "preprocessing", None)) is not None:  # of a network that was loaded
        new.preprocessing = preprocessing
    return result


def _copy_modes(net: DynamicNet, regridding: Regridding) -> None:
    """Copy `requires_grad` of parameters and the training mode of modules to the new network."""
    parameters, modules = dict(net.named_parameters()), dict(net.named_modules())
    for name, parameter in regridding.module.named_parameters():
        parameter.requires_grad_(parameters[regridding.sources[name].names[0]].requires_grad)
    old_names = {
        new.rpartition(".")[0]: source.names[0].rpartition(".")[0]
        for new, source in regridding.sources.items()
    }
    for name, module in regridding.module.named_modules():
        old = modules.get(old_names.get(name, name))
        module.training = net.training if old is None else old.training


def _each(value: Any, count: int) -> list[Any]:
    """One change of a grid for each stage."""
    value = value.tolist() if hasattr(value, "tolist") else value
    several = isinstance(value, Sequence) and not isinstance(value, str) and value
    if several and not isinstance(value[0], int | float):
        if len(value) != count:
            raise InputError(f"{len(value)} time grids are given for {count} stages")
        return list(value)
    return [value] * count


def _new_stage(number: int, block: DynamicBlock, states: Any, controls: Any) -> Stage:
    """The stage of a block on new grids; errors name the stage."""
    old = block.stage
    try:
        new_states = _changed(old.states, states)
        if (new_states.start, new_states.end) != (old.states.start, old.states.end):
            raise InputError(
                f"states {new_states} do not go from {old.states.start:g} to {old.states.end:g} as before"
            )
        both_halved = states == controls == "halve"
        by_default = controls == "states" or (both_halved and old.controls is None)
        grid = None if by_default else _changed(block.controls.grid, controls)
        if old.interpolation == "shared":
            if controls not in (None, "keep", "states", "double", "halve"):
                raise InputError("shared controls have one node, which cannot change: omit controls")
            return replace(old, states=new_states, gradient=_without_plan(old.gradient))
        if grid is not None and (grid.start < new_states.start or grid.end > new_states.end):
            raise InputError(f"control nodes {grid} reach beyond the states, {new_states}")
        unchanged = grid == block.controls.grid and old.controls is None and new_states == old.states
        nodes = None if unchanged else grid
        return replace(old, states=new_states, controls=nodes, gradient=_without_plan(old.gradient))
    except InputError as error:
        raise InputError(*(f"stage {number + 1}: {message}" for message in error.messages)) from None


def _without_plan(gradient: Gradient) -> Gradient:
    """The gradient method with the default plan: an explicit one holds for one number of steps only."""
    planned = isinstance(gradient, Checkpointed) and gradient.plan is not None
    return Checkpointed() if planned else gradient


def _changed(grid: TimeGrid, change: Any) -> TimeGrid:
    if change is None or change == "keep":
        return grid
    if change == "double":
        return grid.refine()
    if change == "halve":
        return grid.coarsen()
    if isinstance(change, str):
        raise InputError(f"unknown change of a grid '{change}': double, halve, keep, or nodes like 0,0.5,1")
    return TimeGrid.of(change)


def _combinations(old: DynamicBlock, new: DynamicBlock) -> list[Combination]:
    """The old theta at each new node; for splines the coefficients of the spline through it."""
    grid, interpolation, times = old.controls.grid, old.stage.interpolation, new.controls.grid.nodes
    if interpolation in DEGREES and new.controls.grid == grid:
        return [((j, 1.0),) for j in range(len(times))]
    theta = [interpolation_weights(grid, interpolation, t) for t in times]
    if interpolation not in DEGREES:
        return theta
    return _fitted(new.controls.grid, interpolation, times, theta, len(grid.nodes))


def _fitted(
    grid: TimeGrid, interpolation: str, times: Sequence[float], theta: Sequence[Combination], old_nodes: int
) -> list[Combination]:
    """The nodes of the controls on `grid` that are nearest to theta at `times`, by least squares.

    Args:
        grid: the new nodes.
        interpolation: between them.
        times: at least as many as nodes.
        theta: at each of these times, a combination of old nodes.
        old_nodes: their number.
    """
    basis, target = np.zeros((len(times), len(grid.nodes))), np.zeros((len(times), old_nodes))
    for k, (time, combination) in enumerate(zip(times, theta, strict=True)):
        for j, w in interpolation_weights(grid, interpolation, time):
            basis[k, j] = w
        for j, w in combination:
            target[k, j] = w
    solution = np.linalg.lstsq(basis, target, rcond=None)[0]  # (new nodes, old nodes)
    rows = [[(i, float(w)) for i, w in enumerate(row) if abs(w) > NEGLIGIBLE] for row in solution]
    return [
        ((row[0][0], 1.0),) if len(row) == 1 and abs(row[0][1] - 1) <= NEGLIGIBLE else tuple(row)
        for row in rows
    ]


def _block_sources(
    prefix: str, old: DynamicBlock, new: DynamicBlock, combinations: Sequence[Combination] | None
) -> list[tuple[str, TensorSource]]:
    """The name of each tensor of the new block and its source in the old network."""
    sources: list[tuple[str, TensorSource]] = []
    interpolated = combinations is None and old.stage.interpolation not in DEGREES
    for j, nodes in enumerate(_combinations(old, new) if combinations is None else combinations):
        weights = tuple(w for _, w in nodes)[interpolated:] if len(nodes) > 1 else ()
        for name, _ in new.controls[j].named_parameters():
            names = tuple(f"{prefix}controls.{i}.{name}" for i, _ in nodes)
            sources.append((f"controls.{j}.{name}", TensorSource(names, weights)))
        # constants of the field; the block has the statistics
        first = nodes[0][0] if interpolated else max(nodes, key=lambda node: node[1])[0]
        for name, _ in new.controls[j].named_buffers():
            sources.append((f"controls.{j}.{name}", TensorSource((f"{prefix}controls.{first}.{name}",))))
    middles = [t + h / 2 for t, h in zip(new.stage.states.nodes, new.stage.states.intervals, strict=False)]
    steps = [old.stage.states.interval_of(t) for t in middles]
    for name, values in new.scheme.items():
        if name not in old.scheme:
            raise InputError(
                f"{old.stage.integrator.name}: on a single step it has no {name} for finer steps to take: "
                "train it with two steps or more"
            )
        without = old.stage.states.steps - len(old.scheme[name])  # steps at the start that have none
        rows = tuple(max(0, step - without) for step in steps[len(steps) - len(values) :])
        sources.append((f"scheme.{name}", TensorSource((f"{prefix}scheme.{name}",), rows=rows)))
    for e, statistics in enumerate(new.statistics):
        nearest = _nearest(e, new.evaluations, old.evaluations)
        for name, _ in statistics.named_buffers():
            source = TensorSource((f"{prefix}statistics.{nearest}.{name}",))
            sources.append((f"statistics.{e}.{name}", source))
    return sources


def _nearest(e: int, new: Sequence[Evaluation], old: Sequence[Evaluation]) -> int:
    """The index of the old evaluation of the same part that is nearest in time to new evaluation e.

    If several are at that time (the stages of RK4), the first maps to the first, and so on: on the same grid
    each evaluation keeps its own.
    """
    time, part = new[e]
    rank = new[:e].count(new[e])
    same_part = [i for i, known in enumerate(old) if known.part == part]
    nearest = min(same_part, key=lambda i: abs(old[i].time - time))
    same_time = [i for i in same_part if old[i].time == old[nearest].time]
    return same_time[min(rank, len(same_time) - 1)]
