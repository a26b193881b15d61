"""Pretrained networks of the package, by name: a weights file and a model card (NAME.md) each.

`results/ship.py` copies them from recorded runs; `resode list models` lists them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """All names, such as `short/resnet20`: each is the name of the recipe that trained the network."""
    found = FOLDER.rglob("*.safetensors")
    return tuple(sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in found))


def file(name: str) -> Path | None:
    """The weights file of a name; None if there is no such name."""
    return FOLDER / f"{name}.safetensors" if name in names() else None
