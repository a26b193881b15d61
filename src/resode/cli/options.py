"""Options that several commands share, and what they mean."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from resode import atomic
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
    str | None,
    typer.Option("--on-bad-image", metavar="A", help="error, or skip (skipped images are listed)."),
]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="A Python file that registers models, fields, integrators or data; repeatable.",
    ),
]
PrecisionOption = Annotated[str | None, typer.Option("--precision", metavar="P", help="fp32 or bf16.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe; repeatable."),
]
TrainingPrecisionOption = Annotated[
    str | None, typer.Option("--precision", metavar="P", help="auto, fp32 or bf16.")
]
CompileOption = Annotated[
    str | None, typer.Option("--compile", metavar="C", help="auto, on or off (torch.compile).")
]
FreezeOption = Annotated[
    str | None,
    typer.Option("--compile", metavar="C", help="on or off: faster for many images, after some seconds."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def load_plugins(files: Sequence[Path] | None) -> list[dict[str, str]]:
    """Run the Python files that the user names, once each; they register what they bring.

    Returns:
        The path and SHA-256 of each, for the record.
    """
    loaded = []
    for number, file in enumerate(dict.fromkeys(file.expanduser().resolve() for file in files or ())):
        if not file.is_file():
            raise InputError(f"--plugin {file}: no such file")
        name = f"resode_plugin_{number}_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise InputError(f"--plugin {file}: is no Python file (.py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"--plugin {file}: {type(error).__name__}: {error}") from error
        loaded.append({"path": str(file), "sha256": atomic.sha256(file)})
    return loaded


def choice(option: str, value: Any, allowed: Sequence[str]) -> Any:
    """`value`, if it is one of `allowed`."""
    if value is not None and value not in allowed:
        raise InputError(f"{option} {value}: choose one of {', '.join(allowed)}")
    return value
