"""`resode bench`: how fast a recipe runs on this machine."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.cli.completion import recipe_names
from resode.cli.options import (
    CompileOption,
    DataOption,
    DeviceOption,
    JsonOption,
    PluginOption,
    SettingsOption,
    TrainingPrecisionOption,
    overrides,
)
from resode.errors import InputError
from resode.plugins import load_plugins

if TYPE_CHECKING:
    from resode.analysis.bench import Bench


def bench(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe (`resode list recipes`), a YAML file, or a run.",
            autocompletion=recipe_names,
        ),
    ],
    data: DataOption = None,
    settings: SettingsOption = None,
    device: DeviceOption = None,
    precision: TrainingPrecisionOption = None,
    compile_: CompileOption = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="Time to measure, roughly.")
    ] = 20.0,
    json_: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Measure how fast a recipe trains and infers here, against a plain loop measured in alternation.

    The plain loop is fp32, NCHW, eager, with `.item()` in each step: once on one fixed batch, once through a
    DataLoader with transforms of single images. No run is written.

    Examples:

        resode bench quickstart

        resode bench he2016/resnet20 --data cifar10 --json

        resode bench he2016/resnet56 --compile on --seconds 60

    \f
    """
    plugins = load_plugins(plugin)
    if not 0 < seconds < 3600:
        raise InputError(f"--seconds {seconds:g}: give between 0 and 3600")
    from resode.analysis import bench as measuring
    from resode.cli.console import note
    from resode.training import Experiment
    from resode.training.records.environment import environment
    from resode.training.setup.preparation import prepare

    options = {
        "data.source": data,
        "device": device,
        "precision": precision,
        "compile": compile_,
        "plugins": plugins or None,
    }
    experiment = Experiment.from_recipe(recipe, overrides(settings, options))
    setup = prepare(experiment, None, note)
    for line in setup.notes:
        note(line)
    if setup.experiment.sizes:
        note("measured at full image size; the smaller sizes of the recipe take less time")
    found = measuring.bench(setup, seconds)
    record = {
        "recipe": recipe,
        "batch_size": min(setup.experiment.batch_size, setup.training.samples),
        "precision": setup.experiment.precision,
        "inference_precision": setup.experiment.evaluation.precision,
        "compile": setup.experiment.compile,
        **_record(found),
        "environment": environment(setup.device),
    }
    if json_:
        print(json.dumps(record, ensure_ascii=False))
        return
    _print(record)


def _record(found: "Bench") -> dict[str, Any]:
    work, frozen = found.operations, found.frozen_inference
    return {
        "train_images_per_second": round(found.training, 1),
        "plain_train_images_per_second": round(found.plain_training, 1),
        "loader_train_images_per_second": round(found.loading_training, 1),
        "inference_images_per_second": round(found.inference, 1),
        "plain_inference_images_per_second": round(found.plain_inference, 1),
        "frozen_inference_images_per_second": frozen and round(frozen, 1),
        "train_ratio": round(found.training / found.plain_training, 3),
        "inference_ratio": round(found.inference / found.plain_inference, 3),
        "step_shares": {phase: round(share, 4) for phase, share in found.phases.items()},
        "peak_memory_bytes": found.peak_memory_bytes,
        "operations_per_second": None if work is None else round(work),
        "matrix_peak_operations_per_second": round(found.matrix_peak),
        "matrix_peak_share": None if work is None else round(work / found.matrix_peak, 4),
        "memory_bandwidth_bytes_per_second": round(found.bandwidth),
    }


def _print(record: dict[str, Any]) -> None:
    from resode.cli.console import say
    from resode.quantities import size

    def rate(key: str) -> str:
        return f"{record[f'{key}_images_per_second']:>9,.0f} images/s"

    shares = ", ".join(f"{part} {share:.0%}" for part, share in record["step_shares"].items())
    share = record["matrix_peak_share"]
    used = "" if share is None else f", of which training reaches {share:.0%}"
    compiled = ", compiled" if record["compile"] else ""
    frozen = []
    if record["frozen_inference_images_per_second"] is not None:
        ratio = record["frozen_inference_images_per_second"] / record["plain_inference_images_per_second"]
        frozen = [
            (
                "  frozen",
                f"{rate('frozen_inference')}   {ratio:.2f} times; {record['precision']}, --compile on",
            )
        ]
    rows = [
        ("recipe", f"{record['recipe']}, batch {record['batch_size']}, {record['precision']}{compiled}"),
        ("training", f"{rate('train')}   {record['train_ratio']:.2f} times the plain loop"),
        ("  plain loop", f"{rate('plain_train')}   fp32, NCHW, eager, one fixed batch"),
        ("  with loader", f"{rate('loader_train')}   the same through a DataLoader"),
        (
            "inference",
            f"{rate('inference')}   {record['inference_ratio']:.2f} times the plain pass; "
            f"{record['inference_precision']}, eager",
        ),
        ("  plain", f"{rate('plain_inference')}   fp32, NCHW, eager, one fixed batch"),
        *frozen,
        ("a step", shares),
        (
            "matrix peak",
            f"{record['matrix_peak_operations_per_second'] / 1e9:,.0f} GFLOP/s{used}",
        ),
        ("bandwidth", f"{record['memory_bandwidth_bytes_per_second'] / 1e9:,.1f} GB/s (a large copy)"),
        ("peak memory", size(record["peak_memory_bytes"])),
    ]
    for label, text in rows:
        say(f"{label:<14} {text}")
