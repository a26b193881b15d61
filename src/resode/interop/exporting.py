"""Export of networks: an ONNX file, a torch.export program (pt2), or a weights file.

    images (N, C, H, W) -> logits (N, classes) for any N, integrators unrolled, norms in evaluation mode

Every file is read back and run (ONNX by ONNX Runtime) before it gets its name, and has to satisfy

    max |exported - network| <= 1e-5 max |network|   for batches of 1, 2 and 7 random images
"""

import contextlib
import copy
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from resode import atomic, weights
from resode.blocks import dynamic_blocks
from resode.errors import InputError, IntegrityError, nearest
from resode.integrators import FixedStep
from resode.models import why_unnamed
from resode.weights import Card, Preprocessing

INPUTS = ("normalised", "unit", "uint8")
PARITY = 1e-5
BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Args:
        path: the file.
        format: onnx, pt2 or safetensors.
        size: bytes of the file.
        parity: largest difference of a logit to the network's, relative to the largest logit of its batch.
        opset: of an ONNX file, else None.
    """

    path: Path
    format: str
    size: int
    parity: float
    opset: int | None


def export(
    module: nn.Module,
    path: str | PathLike[str],
    *,
    format: str | None = None,
    card: Card | None = None,
    takes: str = "normalised",
) -> Exported:
    """Write a network in evaluation mode, for the CPU; the module itself is unchanged.

    ONNX files have the card in their metadata, pt2 files in `extra_files`, as JSON: all of it under `resode`;
    mean, std, size, classes and input (`takes`) under their own names as well.

    Args:
        module: (N, C, H, W) -> logits (N, classes).
        path: the file; an existing one is replaced.
        format: onnx, pt2 or safetensors (default: from the suffix of the path).
        card: metadata (default: the card of a module from `resode.load`).
        takes: the input of the graph: "normalised" images, as the module takes them; images in [0, 1]
            ("unit") or "uint8" images, which the graph normalises.

    Raises:
        InputError: an unknown format, a missing package, or a network that the format cannot hold.
        IntegrityError: the logits of the file differ from those of the network; the file is not kept.
        ResourceError: the disk is full or read-only; an existing file is unchanged.
    """
    path = Path(path)
    format = format_of(path, format)
    card = card or getattr(module, "card", None)
    if card is None:
        raise InputError(f"{path}: the module has no card with its preprocessing; give card=Card(...)")
    if takes not in INPUTS:
        raise InputError(f"unknown input '{takes}'{nearest(str(takes), INPUTS)} ({', '.join(INPUTS)})")
    network = copy.deepcopy(module).cpu().eval()
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    preprocessing = replace(card.preprocessing, dtype=dtype)
    graph = network if takes == "normalised" else nn.Sequential(_Normalise(preprocessing), network)
    batches = [_images(number, preprocessing, takes) for number in BATCHES]
    parity = torch.inf
    with torch.no_grad(), _quiet():
        file = _FORMATS[format](graph, batches[1], card, takes, path)

        def put(temporary: Path) -> None:
            nonlocal parity
            file.write(temporary)
            parity = _parity(graph, file.read(temporary), batches, path)

        atomic.write(path, put)
    return Exported(path, format, path.stat().st_size, parity, file.opset)


def format_of(path: Path, format: str | None) -> str:
    """The format from the suffix of a file; `InputError` if it is unknown or contradicts `format`."""
    if format is not None and format not in _FORMATS:
        raise InputError(f"unknown format '{format}'{nearest(format, _FORMATS)} ({', '.join(_FORMATS)})")
    allowed = [format] if format is not None else list(_FORMATS)
    if path.suffix.removeprefix(".") not in allowed:
        raise InputError(f"{path}: the file must end in {' or '.join(f'.{name}' for name in allowed)}")
    return path.suffix.removeprefix(".")


class _Normalise(nn.Module):
    """The preprocessing as the first layer of a graph."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        return self.preprocessing(images)


# ---------------------------------------------------------------- formats


@dataclass(frozen=True)
class _File:
    """Writer and reader of one format."""

    write: Callable[[Path], object]
    read: Callable[[Path], Callable[[Tensor], Any]]
    opset: int | None = None


def _onnx(graph: nn.Module, example: Tensor, card: Card, takes: str, path: Path) -> _File:
    runtime = _onnx_runtime()
    for dtype in {p.dtype for p in graph.parameters()} - {torch.float32}:
        raise InputError(
            f"{path}: ONNX files compute in float32, the network in {dtype}; export .pt2, or convert the "
            "network to float32"
        )
    program = _trace(graph, example, path)
    # Unless the size is a power of two: one step of IMEX on 96x96 is off by 2e-5, and fifteen times slower.
    if _uses(program, "fft"):
        raise InputError(f"{path}: Fourier transforms (imex) lose digits in ONNX Runtime; export .pt2")
    try:
        exported: Any = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "N"},),
            verbose=False,
        )
        exported.model.producer_name = "resode"
        exported.model.metadata_props.update(_metadata(card, takes))
        content = exported.model_proto.SerializeToString()
    except Exception as error:  # each of the exporter's translations raises its own
        raise InputError(f"{path}: ONNX cannot express the network ({_reason(error)}); try .pt2") from error

    def read(file: Path) -> Callable[[Tensor], Any]:
        options = runtime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
        try:
            session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise InputError(
                f"{path}: ONNX Runtime cannot run the network ({_reason(error)}); try .pt2"
            ) from error
        return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])

    return _File(lambda file: file.write_bytes(content), read, exported.model.opset_imports[""])


def _pt2(graph: nn.Module, example: Tensor, card: Card, takes: str, path: Path) -> _File:
    content = io.BytesIO()
    torch.export.save(_trace(graph, example, path), content, extra_files=_metadata(card, takes))

    def read(file: Path) -> Callable[[Tensor], Any]:
        with file.open("rb") as stream:
            return torch.export.load(stream).module()

    return _File(lambda file: file.write_bytes(content.getvalue()), read)


def _safetensors(graph: nn.Module, example: Tensor, card: Card, takes: str, path: Path) -> _File:
    if takes != "normalised":
        raise InputError(f"{path}: holds weights and no graph; input {takes} is for .onnx and .pt2")
    if card.specification is None:
        raise InputError(
            f"{path}: {why_unnamed(graph)} (without a name, resode.weights.save keeps its tensors)"
        )
    return _File(lambda file: weights.save(graph, file, card), weights.load)


_FORMATS = {"onnx": _onnx, "pt2": _pt2, "safetensors": _safetensors}


def _metadata(card: Card, takes: str) -> dict[str, str]:
    """The card, and its preprocessing and classes under plain names for readers that do not know cards."""
    preprocessing = card.preprocessing
    plain = {
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "size": preprocessing.size,
        "classes": preprocessing.classes,
        "input": takes,
    }
    return {"resode": card.to_json(), **{k: json.dumps(v, ensure_ascii=False) for k, v in plain.items()}}


def _onnx_runtime() -> Any:
    """Import ONNX Runtime and what the exporter needs; `InputError` if a package is missing."""
    try:
        return [importlib.import_module(name) for name in ("onnx", "onnxscript", "onnxruntime")][-1]
    except (ImportError, RuntimeError):
        raise InputError(
            "ONNX needs onnx, onnxscript and onnxruntime: pip install 'resode[export]'"
        ) from None


# ---------------------------------------------------------------- the graph, and its logits


def _trace(graph: nn.Module, example: Tensor, path: Path) -> torch.export.ExportedProgram:
    """Trace a network by torch.export, for any number of images."""
    for block in dynamic_blocks(graph):
        if not isinstance(block.stage.integrator, FixedStep):
            raise InputError(
                f"{path}: {block.stage.integrator.name} chooses its steps for each batch, which a graph "
                "cannot; train with a scheme of fixed steps (euler, rk4, ...), or export .safetensors"
            )
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    except Exception as error:  # a user's forward may raise anything
        raise InputError(
            f"{path}: torch.export cannot trace the network ({_reason(error)}): a graph needs the same "
            "operations for all images; .safetensors does not"
        ) from error


def _uses(program: torch.export.ExportedProgram, operation: str) -> bool:
    graphs = (m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule))
    return any(operation in str(node.target) for graph in graphs for node in graph.nodes)


def _reason(error: BaseException) -> str:
    """The first line of the root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _images(number: int, preprocessing: Preprocessing, takes: str) -> Tensor:
    """Seeded random images."""
    generator = torch.Generator().manual_seed(number)
    shape = (number, preprocessing.channels, *preprocessing.size)
    if takes == "uint8":
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if takes == "unit":
        return torch.rand(shape, generator=generator)
    return torch.randn(shape, generator=generator).to(preprocessing.dtype)


def _parity(
    network: nn.Module, exported: Callable[[Tensor], Any], batches: Sequence[Tensor], path: Path
) -> float:
    """The largest relative difference of the logits; `IntegrityError` if it exceeds `PARITY`."""
    worst = 0.0
    for x in batches:
        expected, actual = network(x), exported(x)
        if not isinstance(expected, Tensor) or expected.ndim != 2:
            raise InputError(f"{path}: the network does not return logits (N, classes)")
        if not expected.isfinite().all():
            raise IntegrityError(f"{path}: the network's logits are not finite: its weights are damaged")
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
        same_shape = actual.shape == expected.shape
        difference = float((actual - expected).abs().max() / scale) if same_shape else torch.inf
        if not difference <= PARITY:
            raise IntegrityError(
                f"{path}: not written: its logits differ from the network's by {difference:.1e} of the "
                f"largest for {len(x)} images (at most {PARITY:g})"
            )
        worst = max(worst, difference)
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what exporters print, log and warn about; what matters is checked and raised here."""
    before, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
