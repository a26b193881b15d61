"""Pretrained networks of the package, by name: a weights file and a model card (NAME.md) each.

`results/ship.py` copies them from recorded runs; `resode list models` lists them. `hashes.json` holds the
SHA-256 of each weights file.
"""

import json
from pathlib import Path

from resode import atomic
from resode.errors import IntegrityError

FOLDER = Path(__file__).parent
HASHES = "hashes.json"


def names() -> tuple[str, ...]:
    """All names, such as `short/resnet20`: each is the name of the recipe that trained the network."""
    found = FOLDER.rglob("*.safetensors")
    return tuple(sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in found))


def file(name: str) -> Path | None:
    """The weights file of a name; None if there is no such name.

    Raises:
        IntegrityError: the file is not the one that was shipped.
    """
    if name not in names():
        return None
    path = FOLDER / f"{name}.safetensors"
    if json.loads((FOLDER / HASHES).read_text(encoding="utf-8")).get(name) != atomic.sha256(path):
        raise IntegrityError(f"{path}: does not match the hash in {HASHES}; install resode again")
    return path


def write_hashes() -> None:
    """Write `hashes.json` for the files as they are now (`results/ship.py` calls it)."""
    found = {name: atomic.sha256(FOLDER / f"{name}.safetensors") for name in names()}
    atomic.write_json(FOLDER / HASHES, found)
