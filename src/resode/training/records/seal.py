"""Seal: summary.json carries the SHA-256 of the other files of a finished run, and of itself.

    {..., "files": {"metrics.csv": "9f86d0...", ...}, "sha256": "60303a..."}

It is written in one atomic step, last of all, so that a run is finished with its seal or not finished. A run
that a callback stopped may go on: its files are not checked.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resode import atomic
from resode.errors import IntegrityError

SUMMARY = "summary.json"
SEALED = ("experiment.yaml", "environment.json", "metrics.csv", "model.safetensors")
FILES, DIGEST = "files", "sha256"


def sealed(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with the hashes of the files beside it and its own."""
    files = {name: atomic.sha256(folder / name) for name in SEALED if (folder / name).is_file()}
    values = {**{key: value for key, value in summary.items() if key != DIGEST}, FILES: files}
    return {**values, DIGEST: _digest(values)}


def is_sealed(summary: Mapping[str, Any]) -> bool:
    """Whether a summary carries hashes; those of earlier versions do not."""
    return DIGEST in summary or FILES in summary


def check(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Check a run against the seal in its summary; returns whether it has one (earlier versions wrote none).

    Raises:
        IntegrityError: a file was changed, or is missing.
    """
    if not is_sealed(summary):
        return False
    values = {key: value for key, value in summary.items() if key != DIGEST}
    if summary.get(DIGEST) != _digest(values) or not isinstance(summary.get(FILES), Mapping):
        raise IntegrityError(f"{folder / SUMMARY}: does not match the SHA-256 that it carries (damaged)")
    for name, digest in summary[FILES].items() if summary.get("status") == "finished" else ():
        if not (folder / name).is_file() or atomic.sha256(folder / name) != digest:
            raise IntegrityError(
                f"{folder / name}: is not the file with which the run finished (changed or damaged); restore "
                "it, or run the training again"
            )
    return True


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
