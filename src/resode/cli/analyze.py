"""`resode analyze`: a network read as a partial differential equation."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.cli.models import names_a_model, new_model
from resode.cli.options import JsonOption, PluginOption, load_plugins
from resode.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from resode.analysis import KernelDecomposition, Term, VectorField
    from resode.weights import Specification


def analyze(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A run, a checkpoint, a .safetensors file, a model.")
    ],
    pde: Annotated[bool, typer.Option("--pde", help="Every 3x3 kernel as a differential operator.")] = False,
    twist: Annotated[
        bool, typer.Option("--twist", help="The vector field of every twisted convolution.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where the files go (default RUN/analysis, or beside the file)."
        ),
    ] = None,
    json_: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Read a network as a partial differential equation: reaction, advection, diffusion, velocities.

    --pde: the table of network terms and PDE terms; of every 3x3 kernel the shares of its parts, its
    strength, and whether it smooths, in pde.csv and pde.png. --twist: of every twisted layer dilation,
    rotation and strain, in twist.csv, and drawn, in twist-stage1.png, ... Neither: whatever the network has.

    Examples:

        resode analyze runs/r20

        resode analyze akamaster20.safetensors --pde --out pde

        resode analyze runs/r20-twisted --twist

        resode analyze he_resnet20 --json

    \f
    """
    load_plugins(plugin)
    from resode import analysis

    subject = _subject(path, out)
    kernels, fields = analysis.pde(subject.model), analysis.vector_fields(subject.model)
    if not kernels:
        raise InputError(f"{path}: has no 3x3 convolution, and no other is read as a differential operator")
    if twist and not fields:
        raise InputError(
            f"{path}: has no twisted 3x3 convolution; `resode twist {path} --out FILE.safetensors` makes some"
        )
    pde, twist = pde or not twist, twist or (not pde and bool(fields))
    record: dict[str, Any] = {"path": path, "model": subject.name, "files": []}
    tables = []
    if pde:
        terms = analysis.terms(subject.model, subject.shape)
        record |= {"terms": [asdict(t) for t in terms], "kernels": [asdict(k) for k in kernels]}
        record["files"] += _write_pde(subject, kernels)
        tables += [_terms(terms), _strengths(kernels)]
    if twist:
        record |= {"twist": [asdict(field) for field in fields]}
        record["files"] += _write_twist(subject, fields)
        tables.append(_velocities(fields))
    _tell(record, tables, json_)


@dataclass(frozen=True)
class Subject:
    """What is analysed: the network, the shape (C, H, W) of its images, its name, where files go."""

    model: "nn.Module"
    shape: tuple[int, int, int]
    name: str
    folder: Path


def _subject(path: str, out: Path | None) -> Subject:
    from resode import weights
    from resode.training.records.locations import weights_file

    if names_a_model(path):
        return _new(path, out)
    file = weights_file(path)
    model = weights.load(file)
    images, specification = model.preprocessing, model.card.specification
    assert specification is not None  # what has none cannot be loaded
    folder = out or _beside(Path(path), file)
    return Subject(model, (images.channels, *images.size), _name(specification), folder)


def _name(specification: "Specification") -> str:
    """The name of a model, of a twisted one that of what was twisted."""
    of = specification.options.get("of") if specification.name == "twisted" else None
    return f"{of['name'] if isinstance(of, dict) else of}, twisted" if of else specification.name


def _new(name: str, out: Path | None) -> Subject:
    from resode.cli.console import note

    model, shape = new_model(name)
    note(f"{name}: new weights (seed 0); nothing here was learned")
    return Subject(model, shape, name, out or Path(f"{name}-analysis"))


def _beside(path: Path, file: Path) -> Path:
    """`analysis` in a run; of a checkpoint `analysis-ITERATION` in its run; `NAME-analysis` beside a file."""
    if path.is_file():
        return path.with_name(f"{path.stem}-analysis")
    if file.parent.resolve() == path.resolve() and path.resolve().parent.name == "checkpoints":
        return path.resolve().parent.parent / f"analysis-{path.resolve().name}"
    return path / "analysis"


# ---------------------------------------------------------------- files


def _write_pde(subject: Subject, kernels: "Sequence[KernelDecomposition]") -> list[str]:
    from resode.analysis import figures

    table, picture = subject.folder / "pde.csv", subject.folder / "pde.png"
    _write_csv(table, map(asdict, kernels))
    figures.draw_kernels(kernels, f"{subject.name}: its 3x3 kernels as differential operators", picture)
    return [str(table), str(picture)]


def _write_twist(subject: Subject, fields: "Sequence[VectorField]") -> list[str]:
    from resode.analysis import figures

    written = [subject.folder / "twist.csv"]
    _write_csv(written[0], map(asdict, fields))
    for stage in dict.fromkeys(field.stage for field in fields):
        kind, words = (f"stage{stage}", f"stage {stage}") if stage else ("other", "outside of stages")
        written.append(subject.folder / f"twist-{kind}.png")
        chosen = [field for field in fields if field.stage == stage]
        figures.draw_vector_fields(chosen, f"{subject.name}: {words}", written[-1])
    return list(map(str, written))


def _write_csv(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A row each; what is not known is empty, a nested record becomes columns `outer_inner`."""
    from resode import atomic

    rows = [_flat(record) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_text(path, text.getvalue())


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        inner = {f"{key}_{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
        flat |= {k: repr(v) if isinstance(v, float) else v for k, v in inner.items()}
    return flat


# ---------------------------------------------------------------- tables


def _tell(record: Mapping[str, Any], tables: "Sequence[Table]", json_: bool) -> None:
    from resode.cli.console import note, out

    if json_:
        print(json.dumps(record, ensure_ascii=False, allow_nan=False))
        return
    for table in tables:
        out.print(table)
    for file in record["files"]:
        note(f"written: {file}")


def _table(*heads: str, words: int, title: str = "") -> "Table":
    """A table whose first columns hold words, the others numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < words else "right", no_wrap=number >= words)
    return table


def _terms(terms: "Sequence[Term]") -> "Table":
    from rich.text import Text

    table = _table("network term", "PDE term", "here", "count", words=3)
    for term in terms:
        table.add_row(*map(Text, (term.network, term.pde, term.here, f"{term.count:,}")))
    return table


def _strengths(kernels: "Sequence[KernelDecomposition]") -> "Table":
    """The mean of each stage and kind of kernel."""
    from resode.analysis.decomposition import INDEPENDENT, INDEPENDENT_SMOOTHING

    table = _table("3x3 kernels (means)", *INDEPENDENT, "strength", "smoothing", "count", words=1)
    groups: dict[tuple[int | None, str], list[KernelDecomposition]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.stage, kernel.term), []).append(kernel)
    for (stage, term), rows in groups.items():
        label = ("outside of stages" if stage is None else f"stage {stage}") + (
            "" if term == "W" else f", {term}"
        )
        known = [row.smoothing for row in rows if row.smoothing is not None]
        table.add_row(
            label,
            *(f"{100 * sum(row.shares[part] for row in rows) / len(rows):.0f} %" for part in INDEPENDENT),
            f"{sum(row.strength for row in rows) / len(rows):.3g}",
            f"{sum(known) / len(known):+.2f} px²" if known else "-",
            f"{len(rows):,}",
        )
    shares = [f"{100 * share:.0f} %" for share in INDEPENDENT.values()]
    table.add_row(
        "independent entries, to compare", *shares, "", f"{INDEPENDENT_SMOOTHING:+.2f} px²", "", style="dim"
    )
    return table


def _velocities(fields: "Sequence[VectorField]") -> "Table":
    from rich.text import Text

    heads = ("constant", "dilation", "rotation", "strain", "third order", "even", "pattern explains")
    table = _table(
        "twisted layer",
        "tie",
        *heads,
        words=2,
        title="velocities in pixels, at X = 1 (the constant one everywhere)",
    )
    for field in fields:
        numbers = (
            field.constant, field.dilation, field.rotation, field.strain, field.third_order, field.even
        )  # fmt: skip
        share = f"{100 * field.share:.0f} %" if field.share else "-"
        table.add_row(Text(field.name), field.tie, *(f"{value:.3g}" for value in numbers), share)
    return table
