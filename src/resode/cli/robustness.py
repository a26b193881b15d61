"""The robustness column: what `resode evaluate --robustness` and `--corruptions` measure and show."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from resode.analysis.robustness import Row
    from resode.data import Images
    from resode.data.corruptions import Corruptions
    from resode.weights import Loaded, Preprocessing

RobustnessOption = Annotated[
    bool,
    typer.Option("--robustness", help="Errors on rotated, scaled and attacked (FGSM, PGD) images, too."),
]
CorruptionsOption = Annotated[
    str | None,
    typer.Option(
        "--corruptions",
        metavar="DATA",
        help="Errors on CIFAR-10-C, too: its folder, or cifar10-c ($RESODE_DATA/CIFAR-10-C).",
    ),
]
ImagesOption = Annotated[
    int | None,
    typer.Option("--images", metavar="N", min=1, help="How many images these two take (default: all)."),
]


def check(
    robustness: bool,
    corruptions: str | None,
    number: int | None,
    precision: str | None,
    compile_: str | None,
) -> None:
    """Refuse what does not go together."""
    if number is not None and not robustness and corruptions is None:
        raise InputError(
            "--images: goes with --robustness or --corruptions; the error itself is of all images"
        )
    if robustness and compile_ == "on":
        raise InputError("--compile on: a frozen network has no gradient to attack; leave --compile out")
    if robustness and precision == "bf16":
        raise InputError("--precision bf16: attacks by rounded gradients are weaker; leave --precision out")


def opened(source: str, preprocessing: "Preprocessing") -> "Corruptions":
    """The arrays of CIFAR-10-C, labelled in the network's order of classes."""
    from resode.cli.evaluate import places
    from resode.data import corruptions

    takes = (*preprocessing.size, preprocessing.channels)
    if takes != corruptions.SHAPE:
        raise InputError(
            f"--corruptions: images of 32x32x3, but the network takes {'x'.join(map(str, takes))}"
        )
    found = corruptions.read(source)
    order = places(corruptions.NAME, corruptions.CLASSES, preprocessing.classes)
    return replace(found, labels=order[found.labels])


def changed(
    module: "Loaded", images: "Images", number: int | None, batch_size: int, *, show: bool
) -> dict[str, Any]:
    """Errors on rotated, scaled and attacked images, as a record; shown, too, where asked."""
    from resode.analysis import robustness as analysis
    from resode.cli.console import out, say

    some = analysis.random_subset(images, number)
    network = analysis.Preprocessed(module, module.preprocessing)
    with waiting(f"robustness on {len(some):,} images") as on_progress:
        rows = analysis.robustness(network, some, batch_size=batch_size, on_progress=on_progress)
    record = {
        "images": len(some),
        "of": len(images),
        "norm": "Linf",
        "pgd": {"steps": analysis.STEPS, "step": analysis.STEP, "start": "random", "seed": analysis.SEED},
        "rows": [asdict(row) for row in rows],
    }
    if show:
        how = f"{analysis.STEPS} steps of {analysis.STEP:g} eps from a random start, seed {analysis.SEED}"
        say(f"robustness, {len(some):,} of {len(images):,} images; eps in L-infinity; PGD: {how}")
        out.print(_changes(rows))
    return record


def corrupted(
    network: "nn.Module",
    module: "Loaded",
    found: "Corruptions",
    number: int | None,
    precision: str,
    batch_size: int,
    *,
    show: bool,
) -> dict[str, Any]:
    """Errors on the arrays of CIFAR-10-C, as a record; shown, too, where asked."""
    from resode.analysis import robustness as analysis
    from resode.cli.console import note, out, say
    from resode.data.corruptions import FOLDER, STANDARD

    of_pixels = analysis.Preprocessed(network, module.preprocessing)
    of = len(found.labels)
    some = min(number or of, of)
    with waiting(f"{FOLDER}, {len(found.pixels)} x 5 x {some:,} images") as on_progress:
        errors = analysis.corruption_errors(
            of_pixels,
            found,
            number=number,
            batch_size=batch_size,
            precision=precision,
            on_progress=on_progress,
        )
    mean = analysis.mean_error(errors)
    if missing := [name for name in STANDARD if name not in errors]:
        note(f"{found.folder}: lacks {', '.join(missing)}; the mean is of all fifteen, so there is none")
    if show:
        say(f"{FOLDER}, {some:,} of {of:,} images of each severity, top-1 error")
        out.print(_corruptions(errors, mean))
    return {"folder": str(found.folder), "images": some, "of": of, "errors": errors, "mean": mean}


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Callable[[float], None]]:
    """Told the share that is done, says on stderr how long the rest takes: a bar, or a line now and then."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from resode.cli.console import err, note
    from resode.quantities import roughly

    if err.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task(what, total=1.0)
            yield lambda share: bar.update(task, completed=share)
        return
    begin = time.monotonic()
    due = begin + 5

    def tell(share: float) -> None:
        nonlocal due
        now = time.monotonic()
        if now > due and share < 1:
            due = now + 60
            note(f"{what}: {share:.0%} done, about {roughly((now - begin) * (1 / share - 1))} to go")

    yield tell


# ---------------------------------------------------------------- tables


def _changes(rows: "Sequence[Row]") -> "Table":
    table = _table("", "", "top-1 error")
    for row in rows:
        table.add_row(row.change, _amount(row.change, row.amount), f"{row.top1_error:.2f} %")
    return table


def _amount(change: str, amount: float) -> str:
    texts = {"clean": "", "rotation": f"{amount:+g}\N{DEGREE SIGN}", "scale": f"x {amount:g}"}
    return texts.get(change, f"eps {amount:g}/255")


def _corruptions(errors: Mapping[str, Sequence[float]], mean: float | None) -> "Table":
    from resode.data.corruptions import SEVERITIES, STANDARD

    table = _table("severity", *map(str, range(1, SEVERITIES + 1)), "mean")
    for name, row in errors.items():
        label = name if name in STANDARD else f"{name} (extra)"
        table.add_row(label, *(f"{error:.2f} %" for error in (*row, sum(row) / len(row))))
    if mean is not None:
        table.add_row("the fifteen standard ones", *[""] * SEVERITIES, f"{mean:.2f} %", style="bold")
    return table


def _table(*heads: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table
