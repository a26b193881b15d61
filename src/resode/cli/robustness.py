"""`resode evaluate --robustness` and `--corruptions`: their options, and their results as tables."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from resode.analysis.robustness import Row
    from resode.data.corruptions import Corruptions
    from resode.data.matching import How
    from resode.inference import Evaluation

RobustnessOption = Annotated[
    bool,
    typer.Option("--robustness", help="Also the errors on rotated, scaled and attacked (FGSM, PGD) images."),
]
CorruptionsOption = Annotated[
    str | None,
    typer.Option(
        "--corruptions",
        metavar="DATA",
        help="Also the errors on CIFAR-10-C: its folder, or cifar10-c ($RESODE_DATA/CIFAR-10-C).",
    ),
]
ImagesOption = Annotated[
    int | None,
    typer.Option(
        "--images", metavar="N", min=1, help="Images for --robustness and --corruptions (default: all)."
    ),
]


def check(
    robustness: bool, corruptions: str | None, number: int | None, precision: str, compile_: str
) -> None:
    """Refuse options that exclude each other."""
    if number is not None and not robustness and corruptions is None:
        raise InputError("--images: needs --robustness or --corruptions; the plain error is over all images")
    if robustness and compile_ == "on":
        raise InputError("--compile on: a frozen network has no gradient to attack; drop --compile")
    if robustness and precision == "bf16":
        raise InputError("--precision bf16: attacks by rounded gradients are weaker; drop --precision")


def opened(source: str, path: str, classes: "How") -> "tuple[Corruptions, How]":
    """The arrays of CIFAR-10-C, labelled in the order of classes of the weights at `path`, found how."""
    from resode import weights
    from resode.analysis.robustness_record import opened
    from resode.cli.console import note
    from resode.training.records.locations import weights_file

    card = weights.read_card(weights_file(path))
    arrays, order = opened(source, card.preprocessing, classes, assumed=card.assumes_classes)
    if order.note:
        note(order.note)
    return arrays, order.how


def changed(found: "Evaluation", number: int | None, batch_size: int, *, show: bool) -> dict[str, Any]:
    """Errors on rotated, scaled and attacked images, as JSON; `show` prints them."""
    from resode.analysis import robustness as analysis
    from resode.analysis.robustness_record import changed_errors
    from resode.cli.console import out, say, waiting

    count = min(number or len(found.images), len(found.images))
    with waiting(f"robustness on {count:,} images") as on_progress:
        errors = changed_errors(found, number=number, batch_size=batch_size, on_progress=on_progress)
    if show:
        how = f"{analysis.STEPS} steps of {analysis.STEP:g} eps from a random start, seed {analysis.SEED}"
        say(f"robustness, {errors.images:,} of {errors.of:,} images; eps in L-infinity; PGD: {how}")
        out.print(_changes(errors.rows))
    return errors.record()


def corrupted(
    found: "Evaluation",
    arrays: "Corruptions",
    number: int | None,
    precision: str,
    batch_size: int,
    *,
    show: bool,
) -> dict[str, Any]:
    """Errors on the arrays of CIFAR-10-C, as JSON; `show` prints them."""
    from resode.analysis.robustness_record import corrupted_errors
    from resode.cli.console import note, out, say, waiting
    from resode.data.corruptions import FOLDER

    count = min(number or len(arrays.labels), len(arrays.labels))
    with waiting(f"{FOLDER}, {len(arrays.pixels)} x 5 x {count:,} images") as on_progress:
        result = corrupted_errors(
            found, arrays, number=number, batch_size=batch_size, precision=precision, on_progress=on_progress
        )
    if result.missing:
        lacks = ", ".join(result.missing)
        note(f"{result.folder}: lacks {lacks}; no mean is shown, because it is over all fifteen")
    if show:
        say(f"{FOLDER}, {result.images:,} of {result.of:,} images of each severity, top-1 error")
        out.print(_corruptions(result.errors, result.mean))
    return result.record()


def _changes(rows: "Sequence[Row]") -> "Table":
    from resode.cli.console import table

    shown = table("", "", "top-1 error")
    for row in rows:
        shown.add_row(row.change, _amount(row.change, row.amount), f"{row.top1_error:.2f} %")
    return shown


def _amount(change: str, amount: float) -> str:
    texts = {"clean": "", "rotation": f"{amount:+g}\N{DEGREE SIGN}", "scale": f"x {amount:g}"}
    return texts.get(change, f"eps {amount:g}/255")


def _corruptions(errors: Mapping[str, Sequence[float]], mean: float | None) -> "Table":
    from resode.cli.console import table
    from resode.data.corruptions import SEVERITIES, STANDARD

    shown = table("severity", *map(str, range(1, SEVERITIES + 1)), "mean")
    for name, row in errors.items():
        label = name if name in STANDARD else f"{name} (extra)"
        shown.add_row(label, *(f"{error:.2f} %" for error in (*row, sum(row) / len(row))))
    if mean is not None:
        shown.add_row("the fifteen standard ones", *[""] * SEVERITIES, f"{mean:.2f} %", style="bold")
    return shown
