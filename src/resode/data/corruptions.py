"""CIFAR-10-C: corrupted CIFAR-10 test images as published (Hendrycks and Dietterich 2019, arXiv:1903.12261).

The folder `CIFAR-10-C` holds `<corruption>.npy`, (5 n, 32, 32, 3) uint8, and `labels.npy`, (5 n,): the n =
10,000 test images at severity 1, then the same images at severities 2 to 5. The arrays are memory-mapped.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from resode.data.images import Labels, Pixels
from resode.data.pinned import PINNED_DATASETS
from resode.errors import InputError, IntegrityError, nearest

NAME: Final = "cifar10-c"
FOLDER: Final = "CIFAR-10-C"
SEVERITIES: Final = 5
SHAPE: Final = (32, 32, 3)
CLASSES: Final = next(pinned.classes for pinned in PINNED_DATASETS if pinned.name == "cifar10")
STANDARD: Final = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA: Final = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


@dataclass(frozen=True, eq=False)
class Corruptions:
    """The arrays of a CIFAR-10-C folder.

    Attributes:
        folder: the folder.
        labels: (n,) int64, the same for every severity.
        pixels: corruption -> (5, n, 32, 32, 3) uint8, memory-mapped; the standard corruptions first.
    """

    folder: Path
    labels: Labels
    pixels: dict[str, Pixels]


def read(source: str) -> Corruptions:
    """Open all corruptions that a folder holds.

    Args:
        source: the folder `CIFAR-10-C`, a folder that contains it, or `cifar10-c` for
            `$RESODE_DATA/CIFAR-10-C`.

    Raises:
        InputError: no such folder, no labels, an unknown corruption, or an array of another shape or dtype.
        IntegrityError: a file that is truncated or not a plain array, or labels that differ between
            severities.
    """
    folder = _folder(source)
    if not (folder / "labels.npy").is_file():
        raise InputError(f"{folder}: has no labels.npy; give the folder {FOLDER} as published")
    files = {path.stem: path for path in folder.glob("[!.]*.npy") if path.name != "labels.npy"}
    if unknown := sorted(files.keys() - {*STANDARD, *EXTRA}):
        near = nearest(unknown[0], (*STANDARD, *EXTRA))
        raise InputError(f"{files[unknown[0]]}: '{unknown[0]}' is not a corruption of {FOLDER}{near}")
    if not files:
        raise InputError(f"{folder}: holds no corruption ({STANDARD[0]}.npy, ...)")
    labels = _labels(folder / "labels.npy")
    names = [name for name in (*STANDARD, *EXTRA) if name in files]
    return Corruptions(folder, labels, {name: _pixels(files[name], len(labels)) for name in names})


def _folder(source: str) -> Path:
    root = os.environ.get("RESODE_DATA")
    if source == NAME and not root:
        raise InputError(
            f"{NAME}: set RESODE_DATA to the folder that holds {FOLDER}, or give the path of {FOLDER}"
        )
    folder = Path((root or "") if source == NAME else source).expanduser()
    if (folder / FOLDER).is_dir():
        return folder / FOLDER
    if source == NAME or not folder.is_dir():
        missing = folder / FOLDER if source == NAME else folder
        raise InputError(f"{missing}: no such folder; unpack CIFAR-10-C.tar there (Zenodo, record 2535967)")
    return folder


def _pixels(path: Path, count: int) -> Pixels:
    array = _mapped(path)
    expected = (SEVERITIES * count, *SHAPE)
    if array.dtype != np.uint8 or array.shape != expected:
        raise InputError(f"{path}: holds {array.dtype} {array.shape}; expected uint8 {expected}")
    return array.reshape(SEVERITIES, count, *SHAPE)


def _labels(path: Path) -> Labels:
    array = _mapped(path)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array) or len(array) % SEVERITIES:
        raise InputError(
            f"{path}: holds {array.dtype} {array.shape}; expected integers (5 n,), n for each severity"
        )
    by_severity = array.reshape(SEVERITIES, -1)
    if array.min() < 0 or array.max() >= len(CLASSES):
        raise InputError(f"{path}: has labels from {array.min()} to {array.max()}; expected 0 to 9")
    if (by_severity != by_severity[0]).any():
        raise IntegrityError(f"{path}: labels differ between severities, which have the same images")
    labels: Labels = by_severity[0].astype(np.int64)
    return labels


def _mapped(path: Path) -> npt.NDArray[Any]:
    """Memory-map a `.npy` file; `open_memmap` refuses pickles and archives."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, OverflowError, EOFError, SyntaxError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise IntegrityError(f"{path}: is truncated or not a plain array ({reason})") from None
