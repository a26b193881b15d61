"""Re-gridding: the same theta(t) and the same flow on other time grids (prolongation and restriction).

The new network evaluates the old theta(t) on its control nodes; learned numbers of a scheme are constant on
each old step; running statistics begin as those of the nearest old evaluation, and have to be estimated anew.
What is linear in the parameters (momentum, averages, gradients) comes over by the same map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from resode.blocks import DynamicBlock
from resode.controls import interpolation_weights
from resode.errors import InputError
from resode.gradients import Checkpointed, Gradient
from resode.grids import TimeGrid
from resode.integrators.base import Evaluation
from resode.models.dynamic import DynamicNet
from resode.stages import Stage

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Where a tensor of the new network comes from.

    Args:
        paths: the name of an old tensor, or of the two that it lies between.
        weight: of the second.
        rows: which rows of the old tensor are those of the new; all where left out.
    """

    paths: tuple[str, ...]
    weight: float = 0.0
    rows: tuple[int, ...] | None = None

    def known(self, tensors: Tensors) -> bool:
        """Whether the old tensors are there."""
        return all(path in tensors for path in self.paths)

    def of(self, tensors: Tensors) -> Tensor:
        """The new tensor."""
        first = tensors[self.paths[0]]
        if len(self.paths) == 2:
            return torch.lerp(first, tensors[self.paths[1]], self.weight)
        return first.clone() if self.rows is None or not first.ndim else first[list(self.rows)]


@dataclass(frozen=True)
class Regridding:
    """A network on new grids, and where each of its tensors comes from.

    Args:
        module: the new network, with the old one's theta(t).
        sources: for each name of the new `state_dict`, what makes it from tensors by their old names.
    """

    module: DynamicNet
    sources: Mapping[str, Source]

    @torch.no_grad()
    def carry(self, tensors: Tensors) -> dict[str, Tensor]:
        """Tensors by old parameter names (an optimizer's momentum, say) to those by new names."""
        return {name: source.of(tensors) for name, source in self.sources.items() if source.known(tensors)}


def regrid(net: DynamicNet, *, states: Any = None, controls: Any = None) -> Regridding:
    """The network on other time grids.

    Args:
        net: the old network; it stays as it is.
        states: `"double"`, `"halve"`, nodes (from the old start to the old end), or None to keep them; a list
            of these, one for each stage, where they differ.
        controls: the same for the control nodes; `"states"` puts one at each state node that is evaluated.

    Raises:
        InputError: a number of steps that cannot be halved, other end points, control nodes without use.
    """
    blocks = list(net.blocks())
    by_stage = zip(blocks, _each(states, len(blocks)), _each(controls, len(blocks)), strict=True)
    stages = [_stage(number, block, s, c) for number, (block, s, c) in enumerate(by_stage)]
    try:
        new = net.with_stages(stages)
    except InputError as error:
        mend = "controls='states' (--controls states) puts control nodes where the new states need them"
        raise InputError(*error.messages, mend) from None
    reference = next(net.parameters())
    new.to(dtype=reference.dtype, device=reference.device).train(net.training)
    sources = {name: Source((name,)) for name in net.state_dict()}
    for number, (old, fresh) in enumerate(zip(blocks, new.blocks(), strict=True)):
        prefix = f"stages.{number}."
        for name in [n for n in sources if n.startswith(prefix)]:
            del sources[name]
        sources |= {prefix + name: source for name, source in _of_block(prefix, old, fresh)}
    result = Regridding(new, {name: sources[name] for name in new.state_dict()})
    new.load_state_dict(result.carry(net.state_dict()))
    _keep_frozen(net, result)
    return result


def _keep_frozen(net: DynamicNet, regridding: Regridding) -> None:
    """What was frozen, or in evaluation mode, in the old network is so in the new."""
    parameters, modules = dict(net.named_parameters()), dict(net.named_modules())
    for name, parameter in regridding.module.named_parameters():
        parameter.requires_grad_(parameters[regridding.sources[name].paths[0]].requires_grad)
    of_modules = {
        new.rpartition(".")[0]: source.paths[0].rpartition(".")[0]
        for new, source in regridding.sources.items()
    }
    for name, module in regridding.module.named_modules():
        old = modules.get(of_modules.get(name, name))
        module.training = net.training if old is None else old.training


def _each(value: Any, count: int) -> list[Any]:
    """One choice for each stage."""
    value = value.tolist() if hasattr(value, "tolist") else value
    several = isinstance(value, Sequence) and not isinstance(value, str) and value
    if several and not isinstance(value[0], int | float):
        if len(value) != count:
            raise InputError(f"{len(value)} time grids are given for {count} stages")
        return list(value)
    return [value] * count


def _stage(number: int, block: DynamicBlock, states: Any, controls: Any) -> Stage:
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
                raise InputError("shared controls have one node, which stays: leave controls out")
            return replace(old, states=new_states, gradient=_unplanned(old.gradient))
        if grid is not None and (grid.start < new_states.start or grid.end > new_states.end):
            raise InputError(f"control nodes {grid} reach beyond the states, {new_states}")
        unchanged = grid == block.controls.grid and old.controls is None and new_states == old.states
        nodes = None if unchanged else grid
        return replace(old, states=new_states, controls=nodes, gradient=_unplanned(old.gradient))
    except InputError as error:
        raise InputError(*(f"stage {number + 1}: {message}" for message in error.messages)) from None


def _unplanned(gradient: Gradient) -> Gradient:
    """A plan is of one number of steps; for another the rule takes its place."""
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


def _of_block(prefix: str, old: DynamicBlock, new: DynamicBlock) -> list[tuple[str, Source]]:
    """Each tensor of the new block and its source among the old."""
    sources: list[tuple[str, Source]] = []
    grid, interpolation = old.controls.grid, old.stage.interpolation
    for j, time in enumerate(new.controls.grid.nodes):
        weights = interpolation_weights(grid, interpolation, time)
        for name, _ in new.controls[j].named_parameters():
            paths = tuple(f"{prefix}controls.{i}.{name}" for i, _ in weights)
            sources.append((f"controls.{j}.{name}", Source(paths, weights[-1][1])))
        for name, _ in new.controls[j].named_buffers():  # what is no statistic: constants of the field
            sources.append((f"controls.{j}.{name}", Source((f"{prefix}controls.{weights[0][0]}.{name}",))))
    middles = [t + h / 2 for t, h in zip(new.stage.states.nodes, new.stage.states.intervals, strict=False)]
    steps = tuple(old.stage.states.interval_of(t) for t in middles)
    for name in new.scheme:
        sources.append((f"scheme.{name}", Source((f"{prefix}scheme.{name}",), rows=steps)))
    for number, statistics in enumerate(new.statistics):
        nearest = _nearest(number, new.evaluations, old.evaluations)
        for name, _ in statistics.named_buffers():
            path = f"{prefix}statistics.{nearest}.{name}"
            sources.append((f"statistics.{number}.{name}", Source((path,))))
    return sources


def _nearest(number: int, new: Sequence[Evaluation], old: Sequence[Evaluation]) -> int:
    """The number of the old evaluation that is nearest in time, of the same part.

    Where several are made at that time (the stages of RK4), the first is nearest to the first, and so on:
    on the same grid each evaluation keeps its own.
    """
    time, part = new[number]
    rank = new[:number].count(new[number])
    alike = [e for e, known in enumerate(old) if known.part == part]
    nearest = min(alike, key=lambda e: abs(old[e].time - time))
    there = [e for e in alike if old[e].time == old[nearest].time]
    return there[min(rank, len(there) - 1)]
