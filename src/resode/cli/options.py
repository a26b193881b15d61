"""Options that several commands share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from resode.errors import InputError

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="cifar10, digits, ... (`resode list data`), hf://OWNER/NAME, or a folder.",
    ),
]
OnBadImageOption = Annotated[
    Literal["error", "skip"] | None,
    typer.Option("--on-bad-image", help="Stop at an image that cannot be decoded, or skip and list it."),
]
ClassesOption = Annotated[
    str,
    typer.Option(
        "--classes",
        metavar="HOW",
        help="How the data's classes are found among the network's: by-name, by-position, or a YAML or JSON "
        "file, a mapping from the data's names to the network's.",
    ),
]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="A Python file that registers models, fields, integrators or data; repeatable.",
    ),
]
PrecisionOption = Annotated[Literal["fp32", "bf16"], typer.Option("--precision", help="Arithmetic.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe; repeatable."),
]
EpochsOption = Annotated[str | None, typer.Option("--epochs", metavar="N", help="Short for --set epochs=N.")]
LearningRateOption = Annotated[
    str | None, typer.Option("--lr", metavar="LR", help="Short for --set optimizer.lr=LR.")
]
BatchSizeOption = Annotated[
    str | None, typer.Option("--batch-size", metavar="N", help="Short for --set batch_size=N.")
]
TrainingPrecisionOption = Annotated[
    str | None, typer.Option("--precision", metavar="P", help="auto, fp32 or bf16.")
]
CompileOption = Annotated[
    Literal["auto", "on", "off"] | None, typer.Option("--compile", help="torch.compile.")
]
FreezeOption = Annotated[
    Literal["on", "off"],
    typer.Option("--compile", help="Compile for inference: takes some seconds, pays for many images."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file that exists.")]


def shortcuts(epochs: str | None, lr: str | None, batch_size: str | None) -> dict[str, Any]:
    """The overrides for which --epochs, --lr and --batch-size are short."""
    from resode.training.recipe.reading import parse_overrides

    given = {"epochs": epochs, "optimizer.lr": lr, "batch_size": batch_size}
    return dict(parse_overrides(f"{path}={value}" for path, value in given.items() if value is not None))


def overrides(settings: Sequence[str] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of a recipe by dotted path: those of --set, then the options that were given.

    An option takes precedence over --set. `compile` may be "on" or "off".
    """
    from resode.training.recipe.reading import parse_overrides

    given = {path: value for path, value in options.items() if value is not None}
    if given.get("compile") in ("on", "off"):
        given["compile"] = given["compile"] == "on"
    return {**dict(parse_overrides(settings or ())), **given}


def check_out(out: Path, force: bool) -> None:
    """Refuse an --out that is no .safetensors file, lies among the files of a run, or exists."""
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: the file must end in .safetensors")
    from resode.training.optim.optimizers import state_file

    if (out.parent / "experiment.yaml").is_file():
        raise InputError(f"--out {out}: would lie among the files of a run; choose another folder")
    for file in (out, state_file(out)):
        if file.exists() and not force:
            raise InputError(f"--out {file}: exists already; choose another name or add --force")
