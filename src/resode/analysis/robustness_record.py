"""Robustness records: the errors of a trained network on changed and on corrupted images, as JSON.

    found = resode.inference.evaluate("runs/r20")
    changed_errors(found, number=1000).record()
    arrays, order = opened("data/CIFAR-10-C", found.preprocessing)
    corrupted_errors(found, arrays).record()

`resode.analysis.robustness` has the definitions.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from resode.analysis import robustness
from resode.analysis.robustness import Preprocessed, Row
from resode.data import corruptions
from resode.data.corruptions import STANDARD, Corruptions
from resode.data.matching import BY_NAME, ClassOrder, How, class_order
from resode.errors import InputError
from resode.inference import Evaluation
from resode.weights import Preprocessing

OnShare = Callable[[float], None]


def _silent(share: float) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class ChangedErrors:
    """Errors on rotated, scaled and attacked images, of which `images` of `of` were taken."""

    rows: tuple[Row, ...]
    images: int
    of: int

    def record(self) -> dict[str, Any]:
        """The errors as JSON, with the settings of the attacks."""
        pgd = {
            "steps": robustness.STEPS,
            "step": robustness.STEP,
            "start": "random",
            "seed": robustness.SEED,
        }
        rows = [asdict(row) for row in self.rows]
        return {"images": self.images, "of": self.of, "norm": "Linf", "pgd": pgd, "rows": rows}


@dataclass(frozen=True)
class CorruptedErrors:
    """Errors in percent on the arrays of CIFAR-10-C.

    Args:
        folder: of the arrays.
        errors: by corruption, the error at each severity.
        images: how many images of each severity were taken.
        of: how many there are.
        mean: over the fifteen standard corruptions; None where one is missing.
        missing: the standard corruptions that the folder lacks.
    """

    folder: Path
    errors: dict[str, tuple[float, ...]]
    images: int
    of: int
    mean: float | None
    missing: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """The errors as JSON."""
        folder, errors = str(self.folder), self.errors
        return {"folder": folder, "images": self.images, "of": self.of, "errors": errors, "mean": self.mean}


def opened(
    source: str, preprocessing: Preprocessing, classes: How = BY_NAME, *, assumed: bool = False
) -> tuple[Corruptions, ClassOrder]:
    """The arrays of CIFAR-10-C, labelled in a network's order of classes, and how these were found.

    Args:
        source: as of `resode.data.corruptions.read`.
        preprocessing: of the network.
        classes: how the classes are found among the network's, as of `resode.evaluate`.
        assumed: whether the network's class names are assumed.

    Raises:
        InputError: no such arrays, or a network for other images or classes.
        IntegrityError: damaged arrays.
    """
    accepted = (*preprocessing.size, preprocessing.channels)
    if accepted != corruptions.SHAPE:
        raise InputError(
            f"--corruptions: images of 32x32x3, but the network takes {'x'.join(map(str, accepted))}"
        )
    found = corruptions.read(source)
    order = class_order(
        corruptions.NAME, corruptions.CLASSES, preprocessing.classes, classes, assumed=assumed
    )
    return replace(found, labels=order.index[found.labels]), order


def changed_errors(
    found: Evaluation, *, number: int | None = None, batch_size: int = 100, on_progress: OnShare = _silent
) -> ChangedErrors:
    """Errors of an evaluated network on changed images.

    Args:
        found: the network and its images; a frozen network is attacked as it was before.
        number: how many images, a fixed random choice (default: all).
        batch_size: images at a time.
        on_progress: called with the share of the work that is done, up to 1.
    """
    some = robustness.random_subset(found.images, number)
    network = Preprocessed(found.module, found.preprocessing)
    rows = robustness.robustness(network, some, batch_size=batch_size, on_progress=on_progress)
    return ChangedErrors(rows, len(some), len(found.images))


def corrupted_errors(
    found: Evaluation,
    arrays: Corruptions,
    *,
    number: int | None = None,
    batch_size: int = 500,
    precision: str = "fp32",
    on_progress: OnShare = _silent,
) -> CorruptedErrors:
    """Errors of an evaluated network on the arrays of CIFAR-10-C.

    Args:
        found: the network.
        arrays: what `opened` returned.
        number: how many images of each severity, the same of all (default: all).
        batch_size: images at a time.
        precision: "fp32", or "bf16" for autocast.
        on_progress: called with the share of the work that is done, up to 1.
    """
    of = len(arrays.labels)
    errors = robustness.corruption_errors(
        Preprocessed(found.network, found.preprocessing),
        arrays,
        number=number,
        batch_size=batch_size,
        precision=precision,
        on_progress=on_progress,
    )
    missing = tuple(name for name in STANDARD if name not in errors)
    mean = robustness.mean_error(errors)
    return CorruptedErrors(arrays.folder, errors, min(number or of, of), of, mean, missing)
