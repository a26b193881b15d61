"""Reading: a network read as a partial differential equation, with its tables and pictures as files.

`pde.csv` and `pde.png`: parts, strength and smoothing of every 3x3 kernel. `twist.csv` and
`twist-stage1.png`, ...: the vector field of every twisted convolution.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resode import atomic, weights
from resode.analysis import figures
from resode.analysis.decomposition import KernelDecomposition, pde
from resode.analysis.terms import Term, terms
from resode.analysis.velocities import VectorField, vector_fields
from resode.errors import InputError
from resode.operators.stencils import PARTS
from resode.training.records.locations import read_network, weights_file
from resode.training.records.networks import is_model, new_network
from resode.training.records.state import UNKNOWN, State, state_of


@dataclass(frozen=True)
class Reading:
    """What was read of a network.

    Args:
        path: as it was given.
        model: name of the network.
        folder: where its files go by default.
        new: whether the weights are new ones of a registered model.
        state: how far the training of the weights came.
        terms: network terms and PDE terms; empty where only the twist was asked for.
        kernels: parts of every 3x3 kernel; empty in the same case.
        fields: vector fields of twisted convolutions; empty where only the PDE was asked for.
    """

    path: str
    model: str
    folder: Path
    new: bool
    state: State
    terms: tuple[Term, ...]
    kernels: tuple[KernelDecomposition, ...]
    fields: tuple[VectorField, ...]

    def record(self) -> dict[str, Any]:
        """The reading as JSON; what was not asked for is missing."""
        record: dict[str, Any] = {"path": self.path, "model": self.model, **self.state.record()}
        if self.kernels:
            record["terms"] = [asdict(term) for term in self.terms]
            record["kernels"] = [asdict(kernel) for kernel in self.kernels]
        if self.fields:
            record["twist"] = [asdict(field) for field in self.fields]
        return record

    def write(self, folder: Path | None = None) -> tuple[Path, ...]:
        """Write tables and pictures (default folder: `self.folder`); returns the files.

        Raises:
            ResourceError: a file cannot be written.
        """
        folder = folder or self.folder
        written = _write_pde(folder, self.model, self.kernels) if self.kernels else []
        written += _write_twist(folder, self.model, self.fields) if self.fields else []
        return tuple(written)


def read(path: str, *, with_pde: bool = False, with_twist: bool = False) -> Reading:
    """Read a network.

    Args:
        path: a run, a checkpoint, a .safetensors file, pretrained weights, or a registered model.
        with_pde: read every 3x3 kernel as a differential operator.
        with_twist: read the vector field of every twisted convolution. With neither, whatever the network
            has is read.

    Raises:
        InputError: no such network, no 3x3 convolution, or no twisted one where `with_twist`.
        IntegrityError: a corrupt file, or kernels that are not finite.
    """
    new = is_model(path)
    file = None if new else weights_file(path)
    network = new_network(path) if file is None else read_network(file)
    kernels, fields = pde(network), vector_fields(network)
    if not kernels:
        raise InputError(f"{path}: has no 3x3 convolution, and no other is read as a differential operator")
    if with_twist and not fields:
        raise InputError(
            f"{path}: has no twisted 3x3 convolution; `resode twist {path} --out FILE.safetensors` makes some"
        )
    shape = (network.preprocessing.channels, *network.preprocessing.size)
    read_pde, read_twist = with_pde or not with_twist, with_twist or not with_pde
    return Reading(
        path=path,
        model=_name(network),
        folder=Path(f"{path}-analysis") if file is None else _folder_beside(Path(path), file),
        new=new,
        state=UNKNOWN if new else state_of(network.card),
        terms=terms(network, shape) if read_pde else (),
        kernels=kernels if read_pde else (),
        fields=fields if read_twist else (),
    )


def _name(network: weights.Loaded) -> str:
    """The name of a model; for a twisted one the name of the plain model and "twisted"."""
    specification = network.card.specification
    assert specification is not None  # else it could not have been loaded
    plain = specification.options.get("of") if specification.name == "twisted" else None
    if not plain:
        return specification.name
    return f"{plain['name'] if isinstance(plain, dict) else plain}, twisted"


def folder_of(path: str) -> Path:
    """Where the files about the weights of PATH go: `RUN/analysis`, or `NAME-analysis` beside a file."""
    return _folder_beside(Path(path), weights_file(path))


def _folder_beside(path: Path, file: Path) -> Path:
    """RUN/analysis, RUN/analysis-ITERATION for a checkpoint, NAME-analysis beside a file or for a name."""
    if path.is_file():
        return path.with_name(f"{path.stem}-analysis")
    if path.resolve() not in file.resolve().parents:  # a pretrained network
        return Path(f"{path.name}-analysis")
    if file.parent.resolve() == path.resolve() and path.resolve().parent.name == "checkpoints":
        return path.resolve().parent.parent / f"analysis-{path.resolve().name}"
    return path / "analysis"


# ---------------------------------------------------------------- means


@dataclass(frozen=True)
class KernelMeans:
    """Means over the kernels of one stage and term.

    Args:
        stage: counted from 1; None outside of stages.
        term: "W", or "X", "Y", ... of a twist.
        shares: of reaction, advection, diffusion and mixed parts.
        strength: see `KernelDecomposition`.
        smoothing: in pixels^2, over the kernels that have one; None where none has.
        count: how many kernels.
    """

    stage: int | None
    term: str
    shares: dict[str, float]
    strength: float
    smoothing: float | None
    count: int


def kernel_means(kernels: Sequence[KernelDecomposition]) -> tuple[KernelMeans, ...]:
    """The means of each stage and term, in order of appearance."""
    groups: dict[tuple[int | None, str], list[KernelDecomposition]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.stage, kernel.term), []).append(kernel)
    return tuple(_means(stage, term, rows) for (stage, term), rows in groups.items())


def _means(stage: int | None, term: str, rows: list[KernelDecomposition]) -> KernelMeans:
    known = [row.smoothing for row in rows if row.smoothing is not None]
    return KernelMeans(
        stage,
        term,
        {part: sum(row.shares[part] for row in rows) / len(rows) for part in PARTS},
        sum(row.strength for row in rows) / len(rows),
        sum(known) / len(known) if known else None,
        len(rows),
    )


# ---------------------------------------------------------------- files


def _write_pde(folder: Path, name: str, kernels: Sequence[KernelDecomposition]) -> list[Path]:
    table, picture = folder / "pde.csv", folder / "pde.png"
    _write_csv(table, map(asdict, kernels))
    figures.draw_kernels(kernels, f"{name}: its 3x3 kernels as differential operators", picture)
    return [table, picture]


def _write_twist(folder: Path, name: str, fields: Sequence[VectorField]) -> list[Path]:
    written = [folder / "twist.csv"]
    _write_csv(written[0], map(asdict, fields))
    for stage in dict.fromkeys(field.stage for field in fields):
        kind, words = (f"stage{stage}", f"stage {stage}") if stage else ("other", "outside of stages")
        written.append(folder / f"twist-{kind}.png")
        chosen = [field for field in fields if field.stage == stage]
        figures.draw_vector_fields(chosen, f"{name}: {words}", written[-1])
    return written


def _write_csv(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one row a record; None is an empty cell, a nested record becomes columns `outer_inner`."""
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
