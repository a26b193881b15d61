"""Surgery: a stored network on other time grids, twisted, or lifted, written with card and optimizer state.

The optimizer state of the newest checkpoint is carried over by the same map as the parameters and written
beside the new weights (`NAME.optimizer.safetensors`), so that training can go on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from resode import atomic, cost, weights
from resode.data.matching import image_size
from resode.errors import InputError
from resode.models import DynamicNet, name_and_options, twist, why_unnamed
from resode.models.lifting import lifting
from resode.models.regridding import fitting, regridding
from resode.models.twisting import Where, explain
from resode.statistics import RECALIBRATION, estimate_statistics, has_statistics
from resode.training.optim import optimizers
from resode.training.process.device import choose_device, place
from resode.training.recipe.experiment import Experiment
from resode.training.records.locations import Location, locate
from resode.training.records.networks import is_model, new_network
from resode.training.setup.changes import Transfer, zero_extended
from resode.training.setup.data import training_inputs


@dataclass(frozen=True)
class Surgery:
    """What was changed and written.

    Args:
        changes: what differs from the old network, a line each.
        notes: what the user should know, a line each.
        optimizer: the file of the optimizer state; None where the old network had none.
    """

    changes: tuple[str, ...]
    notes: tuple[str, ...]
    optimizer: Path | None

    def written(self, out: Path) -> str:
        """A line about the files that were written."""
        state = f"with {self.optimizer.name}" if self.optimizer else "without an optimizer's state"
        return f"{out}: written, {state}"


def regrid_file(
    path: str | Path,
    out: Path,
    *,
    states: Any = None,
    controls: Any = None,
    data: str | None = None,
    device: str = "auto",
) -> Surgery:
    """Put a stored network of dynamic blocks on other time grids (`resode.models.regrid`).

    Its running statistics are re-estimated on training images: those of its run, or those of `data`.

    Args:
        path: a run, a checkpoint or a .safetensors file.
        out: the .safetensors file to write.
        states: "double", "halve", nodes, or None or "keep"; a list of these for one each stage.
        controls: the same; "states" puts a control node at each state node.
        data: a data set for the statistics (default: that of the run; none for a bare file).
        device: where the statistics are estimated.

    Raises:
        InputError: no such network, one without time grids, or grids that it cannot have.
        IntegrityError: a corrupt file.
    """
    source = locate(path)
    if out.exists() and out.samefile(source.weights):
        raise InputError(f"--out {out}: is the file that is read; choose another name")
    old = weights.load(source.weights)
    if not isinstance(old, DynamicNet):
        assert old.card.specification is not None  # else it could not have been loaded
        raise InputError(
            f"{path}: holds a {old.card.specification.name}, which has no time grids; "
            "only networks of dynamic blocks do"
        )
    done = regridding(old, states=states, controls=controls)
    note = _estimate_statistics(done.module, old.preprocessing, source, data, device)
    digest = atomic.sha256(source.weights)[:12]
    how = f"from {path} ({digest}), states {_grid(states)}, controls {_grid(controls)}"
    card = old.card.derived(_specification(path, done.module), "regridded", how)
    beside = _write(done.module, out, card, source, done.transfer)
    return Surgery(tuple(_grid_changes(old, done.module)), (note,), beside)


def twist_file(path: str | Path, out: Path, *, where: Where = None, **options: Any) -> Surgery:
    """Twist the convolutions of a stored network, or of a registered model with new weights.

    Args:
        path: a run, a checkpoint, a .safetensors file, or the name of a model.
        out: the .safetensors file to write.
        where: which convolutions: stages, names or patterns (default: every 3x3 one).
        options: tie, degree, coordinates and form of `resode.models.twist`.

    Raises:
        InputError: no such network, or a twist that it cannot have.
        IntegrityError: a corrupt file.
    """
    source = None if is_model(str(path)) else locate(path)
    if source is not None and out.exists() and out.samefile(source.weights):
        raise InputError(f"--out {out}: is the file that is read; choose another name")
    old = new_network(str(path)) if source is None else weights.load(source.weights)
    new = twist(old, where, **options)
    how = f"from {path}, tie {options.get('tie', 'conformal')}, degree {options.get('degree', 1)}"
    card = old.card.derived(_specification(path, new), "twisted", how)
    beside = _write(new, out, card, source, zero_extended(new))
    shape = (old.preprocessing.channels, *old.preprocessing.size)
    return Surgery(tuple(explain(old, new, shape)), (), beside)


def lift_file(
    path: str | Path,
    out: Path,
    *,
    controls: int | None = None,
    interpolation: str = "linear",
    data: str | None = None,
    device: str = "auto",
) -> Surgery:
    """Write a stored ResNet as a network of dynamic blocks with the same logits (`resode.models.lift`).

    With fewer controls its running statistics are re-estimated on training images, as by `regrid_file`.

    Args:
        path: a run, a checkpoint, a .safetensors file, or the name of pretrained weights.
        out: the .safetensors file to write.
        controls: so many for each block, by least squares (default: one for each unit).
        interpolation: of these controls: linear, constant, quadratic or cubic.
        data: a data set for the statistics (default: that of the run; none for a bare file).
        device: where the statistics are estimated.

    Raises:
        InputError: no such network, or one that cannot be lifted, or only in Python.
        IntegrityError: a corrupt file.
    """
    source = locate(path)
    if out.exists() and out.samefile(source.weights):
        raise InputError(f"--out {out}: is the file that is read; choose another name")
    old = weights.load(source.weights)
    try:
        done = lifting(old)
        specification = weights.Specification("dynamic", done.module.options())
    except InputError as error:
        raise InputError(*(f"{path}: {line.removeprefix('lift: ')}" for line in error.messages)) from None
    name = type(old).__name__ if old.card.specification is None else old.card.specification.name
    how = f"from {path} ({atomic.sha256(source.weights)[:12]}), a {name}"
    notes = [f"logits: within {done.difference:.2g} of those of the {name}, relative to the largest"]
    new, transfer = done.module, done.transfer
    if controls is not None:
        fitted = fitting(new, controls, interpolation)
        new, transfer = fitted.module, lambda tensors: fitted.transfer(done.transfer(tensors))
        specification = weights.Specification("dynamic", new.options())
        how += f", {controls} {interpolation} controls"
        statistics = _estimate_statistics(new, old.preprocessing, source, data, device)
        notes = [f"controls: the nearest to the weights of the units, {interpolation}", statistics]
    beside = _write(new, out, old.card.derived(specification, "lifted", how), source, transfer)
    return Surgery(tuple(_lifted_lines(new, old.preprocessing)), tuple(notes), beside)


def _lifted_lines(net: DynamicNet, preprocessing: weights.Preprocessing) -> list[str]:
    """What each block is, a line each, and parameters and multiply-adds of the network."""
    lines = []
    for number, block in enumerate(net.blocks(), start=1):
        stage, steps = block.stage, block.stage.states.steps
        count = (
            "" if len(block.controls) == steps else f", {len(block.controls)} {stage.interpolation} controls"
        )
        lines.append(
            f"stage {number}  {steps} {'unit is' if steps == 1 else 'units are'} {steps} "
            f"step{'s' * (steps > 1)} of {stage.integrator.name}, width {stage.width}{count}: "
            f"f = {stage.field.equation}"
        )
    work = cost.multiply_adds(net, (preprocessing.channels, *preprocessing.size))
    lines.append(f"network  {cost.parameters(net):,} parameters, {work / 1e6:,.1f} M multiply-adds an image")
    return lines


def _specification(path: str | Path, module: nn.Module) -> weights.Specification:
    made = name_and_options(module)
    if made is None:
        raise InputError(f"{path}: no file can rebuild it; {why_unnamed(module)}; or change it in Python")
    return weights.Specification(*made)


def _write(
    module: nn.Module, out: Path, card: weights.Card, source: Location | None, transfer: Transfer
) -> Path | None:
    """Write the weights and the carried optimizer state; returns the file of the state."""
    weights.save(module, out, card)
    optimizers.state_file(out).unlink(missing_ok=True)
    if source is None or not source.optimizer:
        return None
    return optimizers.write_state(out, optimizers.carry_state(source.optimizer, transfer))


def _estimate_statistics(
    module: nn.Module,
    preprocessing: weights.Preprocessing,
    source: Location,
    data: str | None,
    device: str,
) -> str:
    """Re-estimate the running statistics where there are training images; returns a line about it."""
    if not has_statistics(module):
        return "statistics: the network has none"
    experiment = source.experiment
    if data is not None and (experiment is None or data != experiment.data.source):
        section = {"source": data, "image_size": image_size(data, preprocessing.size)}
        experiment = Experiment.from_values({"name": "--data", "epochs": 1, "data": section}, "--data")
    if experiment is None:
        return (
            "statistics: copied from the nearest old evaluation, good enough to train on; "
            "give --data to re-estimate them"
        )
    where = choose_device(device)
    inputs = training_inputs(experiment, preprocessing, RECALIBRATION, where)
    estimate_statistics(place(module, where), inputs.batches)
    return f"statistics: re-estimated on {inputs.samples:,} training images of {inputs.source}"


def _grid(change: Any) -> str:
    """A change of a grid as the card records it."""
    if change is None:
        return "keep"
    if isinstance(change, list) and not isinstance(change[0], float | int):
        return "/".join(map(_grid, change))
    return change if isinstance(change, str) else ",".join(repr(node).removesuffix(".0") for node in change)


def _grid_changes(old: DynamicNet, new: DynamicNet) -> list[str]:
    """Grids, evaluations and parameters before and after, a line each."""
    lines = []
    for number, (a, b) in enumerate(zip(old.blocks(), new.blocks(), strict=True), start=1):
        pairs = [
            ("states", a.stage.states, b.stage.states),
            ("controls", a.controls.grid, b.controls.grid),
            ("evaluations", len(a.evaluations), len(b.evaluations)),
        ]
        lines += [f"stage {number}  {label:<12} {_from_to(x, y)}" for label, x, y in pairs]
    total = [sum(len(block.evaluations) for block in net.blocks()) for net in (old, new)]
    lines.append(f"network  {'evaluations':<12} {_from_to(*total)}")
    counts = [f"{cost.parameters(net):,}" for net in (old, new)]
    lines.append(f"network  {'parameters':<12} {_from_to(*counts)}")
    return lines


def _from_to(before: object, after: object) -> str:
    return f"{before} -> {after}" if before != after else f"{before} as before"
