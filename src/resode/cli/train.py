"""`resode train`: train a network from a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resode.cli.completion import recipe_names, weights_names
from resode.cli.options import (
    BatchSizeOption,
    CompileOption,
    DataOption,
    DeviceOption,
    EpochsOption,
    LearningRateOption,
    OnBadImageOption,
    PluginOption,
    SettingsOption,
    TrainingPrecisionOption,
    overrides,
    shortcuts,
)
from resode.errors import InputError
from resode.plugins import load_plugins

if TYPE_CHECKING:
    from resode.training import Experiment


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe (`resode list recipes`), a YAML file, or a run.",
            autocompletion=recipe_names,
        ),
    ] = None,
    data: DataOption = None,
    on_bad_image: OnBadImageOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The run directory (default: runs/RECIPE-seedN)."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            metavar="FILE",
            help="Weights to start from (.safetensors).",
            autocompletion=weights_names,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of weights, order and augmentation.")
    ] = None,
    epochs: EpochsOption = None,
    lr: LearningRateOption = None,
    batch_size: BatchSizeOption = None,
    settings: SettingsOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the directory.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run two batches, estimate time and memory, write nothing.")
    ] = False,
    device: DeviceOption = None,
    precision: TrainingPrecisionOption = None,
    compile_: CompileOption = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            "--memory-budget",
            metavar="B",
            help="Memory of a training step, e.g. 600MB: recompute activations to fit.",
        ),
    ] = None,
    track: Annotated[
        Literal["tensorboard"] | None,
        typer.Option("--track", help="Write events of the run to RUN/tensorboard."),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Train a network from a recipe and write a run directory.

    Ctrl-C saves and stops; `--resume` continues from that step.

    Examples:

        resode train quickstart

        resode train he2016/resnet20 --data cifar10 --out runs/r20

        resode train he2016/resnet20 --epochs 10 --lr 0.05 --set optimizer.nesterov=true

        resode train he2016/resnet1202 --memory-budget 600MB --precision bf16

        resode train --resume --out runs/r20 --track tensorboard

        torchrun --nproc-per-node 2 -m resode train he2016/resnet56

    \f
    """
    plugins = load_plugins(plugin)
    if recipe is None:
        if out is None or not resume:
            raise InputError(
                "which recipe? e.g. `resode train quickstart` (`resode list recipes` lists them)"
            )
        if not (out / "experiment.yaml").is_file():
            raise InputError(f"{out}: holds no run to resume; name a recipe to start one")
        recipe = str(out)
    from resode.training import Experiment
    from resode.training.records.locations import weights_file

    options = {
        "data.source": data,
        "data.on_bad_image": on_bad_image,
        "seed": seed,
        "device": device,
        "precision": precision,
        "memory_budget": memory_budget,
        "compile": compile_,
        "init.path": None if init is None else str(weights_file(init)),
        "plugins": plugins or None,
        **shortcuts(epochs, lr, batch_size),
    }
    experiment = Experiment.from_recipe(recipe, overrides(settings, options))
    if dry_run:
        _dry_run(experiment)
    else:
        _train(experiment, out, resume, track)


def _train(experiment: "Experiment", out: Path | None, resume: bool, track: str | None) -> None:
    from resode import report, training
    from resode.cli.console import err, note
    from resode.cli.console import out as stdout
    from resode.training.narrator import Narrator
    from resode.training.process.distributed import World
    from resode.training.tracking import TensorBoard

    folder = out or training.default_directory(experiment)
    callbacks: list[Narrator | TensorBoard] = [Narrator(err)]
    if track is not None:
        callbacks.append(TensorBoard(folder))
    try:
        result = training.train(experiment, out=folder, resume=resume, callbacks=callbacks, progress=False)
    finally:
        for each in callbacks:
            each.close()
    if not World.from_environment().first:
        return
    page = report.write(result.run.path)
    stdout.print(report.table(result.run.path))
    note(f"run: {result.run.path}   report: {page}")


def _dry_run(experiment: "Experiment") -> None:
    from resode import training
    from resode.cli.console import note, say
    from resode.quantities import roughly, size

    estimate = training.estimate(experiment)
    for line in estimate.setup.notes:
        note(line)
    setup, cost = estimate.setup, estimate.predicted
    experiment = setup.experiment
    name = experiment.model.name if experiment.model else "-"
    rate = min(experiment.batch_size, setup.training.samples) / estimate.step_seconds
    whole = f"about {roughly(estimate.seconds)} for {experiment.epochs} epochs on {setup.device}"
    peak, kept = size(estimate.memory_bytes), size(cost.activation_bytes)
    counted = f", counting one evaluation of {solvers}" if (solvers := estimate.solvers) else ""
    rows = [
        ("model", f"{name}, {setup.parameters:,} parameters"),
        ("training images", f"{setup.training.samples:,} in {setup.training.steps} steps an epoch"),
        ("one step", f"{1e3 * estimate.step_seconds:.0f} ms, {rate:,.0f} images/s"),
        ("whole run", whole),
        ("memory", f"{peak} at the peak of two batches (activations {kept}{counted})"),
    ]
    for label, text in rows:
        say(f"{label:<16} {text}")
