"""Shipped: trained weights that come with the package, by name; a model card (NAME.md) lies beside each.

`results/ship.py` takes them out of recorded runs; `resode list models` shows them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Every name, such as `short/resnet20`: that of the recipe which trained it."""
    found = FOLDER.rglob("*.safetensors")
    return tuple(sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in found))


def file(name: str) -> Path | None:
    """The weights file of a name; None where there is none."""
    return FOLDER / f"{name}.safetensors" if name in names() else None
