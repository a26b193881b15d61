"""`resode regrid`: a trained network of dynamic blocks on other time grids."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.cli.options import DataOption, DeviceOption, PluginOption, load_plugins
from resode.errors import InputError, nearest

if TYPE_CHECKING:
    from resode.models import DynamicNet, Regridding
    from resode.training.records.run import Source
    from resode.weights import Card, Loaded

WORDS = {"--states": ("double", "halve", "keep"), "--controls": ("double", "halve", "keep", "states")}


def regrid(
    path: Annotated[str, typer.Argument(metavar="RUN", help="A run, a checkpoint or a .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    states: Annotated[
        str,
        typer.Option(
            "--states",
            metavar="GRID",
            help="double, halve, keep, or nodes like 0,0.5,1,2; stage by stage with / between: double/keep.",
        ),
    ] = "keep",
    controls: Annotated[
        str,
        typer.Option("--controls", metavar="GRID", help="The same, or states: a node at each state node."),
    ] = "keep",
    data: DataOption = None,
    device: DeviceOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Put a network of dynamic blocks on other time grids: the same theta(t), the same flow.

    Its running statistics are estimated anew on the training images of the run, or on those of --data. Of a
    run with a checkpoint the optimizer's state comes along, in FILE.optimizer.safetensors: train on with
    `--init FILE --set init.optimizer=true`.

    Examples:

        resode regrid runs/rk4 --states double --controls double --out fine.safetensors

        resode regrid runs/rk4 --states 0,0.5,1,2,4 --controls states --out graded.safetensors

        resode regrid runs/rk4 --states double/double/keep --out mixed.safetensors

        resode train dynamicblocks/rk4 --init fine.safetensors --set init.optimizer=true

    \f
    """
    load_plugins(plugin)
    grids = {"states": _grids("--states", states), "controls": _grids("--controls", controls)}
    if states == controls == "keep":
        raise InputError("nothing to change: give --states or --controls, e.g. --states double")
    refuse_place(out, force)
    if Path(path).exists() and out.exists() and out.samefile(path):
        raise InputError(f"--out {out}: is the file that is read; choose another name")
    from resode import weights
    from resode.cli.console import note, say
    from resode.models import DynamicNet
    from resode.models import regrid as regridded
    from resode.training.optim import optimizers
    from resode.training.records.run import source_of

    source = source_of(path)
    old = weights.load(source.weights)
    if not isinstance(old, DynamicNet):
        raise InputError(
            f"{path}: holds a {_name(old.card)}, which has no time grids; only networks of dynamic blocks do"
        )
    regridding = regridded(old, **grids)
    estimated = _estimate_statistics(regridding, old, source, data, device)
    card = _card(old.card, regridding.module, path, source, states, controls)
    weights.save(regridding.module, out, card)
    beside = optimizers.state_file(out)
    beside.unlink(missing_ok=True)
    if source.optimizer:
        optimizers.write_state(out, optimizers.carry_state(source.optimizer, regridding.transfer))
    for line in _changes(old, regridding.module):
        say(line)
    note(estimated)
    note(
        f"{out}: written"
        + (f", with {beside.name}" if source.optimizer else ", without an optimizer's state")
    )


def _grids(option: str, text: str) -> Any:
    """The change of all grids, or a list of changes, one for each stage."""
    changes = [_grid(option, part.strip()) for part in text.split("/")]
    return changes if len(changes) > 1 else changes[0]


def _grid(option: str, text: str) -> Any:
    """A change of a grid as `resode.models.regrid` takes it."""
    if not any(letter.isdigit() for letter in text):
        words = WORDS[option]
        if text not in words:
            raise InputError(
                f"{option} {text}{nearest(text, words)} ({', '.join(words)}, or nodes like 0,0.5,1,2)"
            )
        return text
    try:
        return [float(node) for node in text.strip("[]").split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: nodes are numbers with commas between, like 0,0.5,1,2") from None


def refuse_place(out: Path, force: bool) -> None:
    """Refuse a file that is no .safetensors file, lies among those of a run, or is there already."""
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: the file must end in .safetensors")
    from resode.training.optim.optimizers import state_file

    if (out.parent / "experiment.yaml").is_file():
        raise InputError(f"--out {out}: would lie among the files of a run; choose another folder")
    for file in (out, state_file(out)):
        if file.exists() and not force:
            raise InputError(f"--out {file}: exists already; choose another name or add --force")


def _name(card: "Card") -> str:
    return card.specification.name if card.specification else "module"


def _estimate_statistics(
    regridding: "Regridding", old: "Loaded", source: "Source", data: str | None, device: str | None
) -> str:
    """Estimate the statistics on training images, where there are any; says what was done."""
    from resode.cli.evaluate import image_size
    from resode.training import Experiment
    from resode.training.optim.averaging import RECALIBRATION, estimate_statistics, has_statistics
    from resode.training.process.device import choose_device, place
    from resode.training.setup.preparation import training_inputs

    module = regridding.module
    if not has_statistics(module):
        return "statistics: the network has none"
    experiment = source.experiment
    if data is not None and (experiment is None or data != experiment.data.source):
        section = {"source": data, "image_size": image_size(data, old.preprocessing.size)}
        experiment = Experiment.from_values({"name": "--data", "epochs": 1, "data": section}, "--data")
    if experiment is None:
        return (
            "statistics: each is that of the nearest evaluation before, good enough to train on; "
            "give --data to estimate them anew"
        )
    where = choose_device(device or "auto")
    inputs = training_inputs(experiment, old.preprocessing, RECALIBRATION, where)
    estimate_statistics(place(module, where), inputs.batches)
    return f"statistics: estimated anew on {inputs.samples:,} training images of {inputs.source}"


def _card(
    old: "Card", module: "DynamicNet", path: str, source: "Source", states: str, controls: str
) -> "Card":
    """The old card with the new network."""
    from resode import atomic
    from resode.models import name_and_options
    from resode.weights import Specification

    made = name_and_options(module)
    assert made is not None  # it was read from a file
    digest = atomic.sha256(source.weights)[:12]
    how = f"from {path} ({digest}), states {states}, controls {controls}"
    return old.derived(Specification(*made), "regridded", how)


def _changes(old: "DynamicNet", new: "DynamicNet") -> list[str]:
    """What is other than before, a line each."""
    from resode import cost

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
