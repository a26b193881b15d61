"""Networks out: an ONNX file, a program of torch.export (pt2), or a weights file.

    N images -> N logits for any N, integrators unrolled, normalisations as in evaluation

A file gets its name only after it was read again and run, an ONNX file by ONNX Runtime:

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
from resode.weights import Card, Preprocessing

INPUTS = ("normalised", "unit", "uint8")
PARITY = 1e-5
BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: the file.
        format: onnx, pt2 or safetensors.
        size: of the file, in bytes.
        parity: the largest difference of a logit, relative to the largest logit of its batch.
        opset: of an ONNX file.
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
    """Write a network as it is in evaluation mode, for the CPU; the module itself is not touched.

    ONNX files have the card in their metadata, pt2 files in `extra_files`: whole under `resode`, and mean,
    std, size, classes and input (`takes`) under their own names, all as JSON.

    Args:
        module: (N, C, H, W) -> logits (N, classes).
        path: the file; one that is there is replaced.
        format: onnx, pt2 or safetensors; left out, the suffix of the path tells.
        card: left out, that of a module from `resode.load`.
        takes: what the graph takes: normalised images, as the module does; or images in [0, 1] (unit) or
            uint8 ones, which it normalises itself.

    Raises:
        InputError: an unknown format, a missing package, or a network that the format cannot hold.
        IntegrityError: the file does not give the logits of the network; it is not kept.
        ResourceError: the disk is full or read-only; a file that is there stays.
    """
    path = Path(path)
    format = format_of(path, format)
    card = card or getattr(module, "card", None)
    if card is None:
        raise InputError(f"{path}: the module has no card, and so no preprocessing; give card=Card(...)")
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
    """The format of a file: that of its suffix, and the one that is asked for (else `InputError`)."""
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
    """How a network is written to a file, and read from it."""

    write: Callable[[Path], object]
    read: Callable[[Path], Callable[[Tensor], Any]]
    opset: int | None = None


def _onnx(graph: nn.Module, example: Tensor, card: Card, takes: str, path: Path) -> _File:
    runtime = _onnx_runtime()
    for dtype in {p.dtype for p in graph.parameters()} - {torch.float32}:
        raise InputError(f"{path}: ONNX Runtime computes in float32, not in {dtype}; export module.float()")
    program = _trace(graph, example, path)
    # Where the size is no power of two: one step of IMEX on 96x96 is off by 2e-5, and fifteen times slower.
    if _uses(program, "fft"):
        raise InputError(f"{path}: Fourier transforms (imex) lose digits in ONNX Runtime; export .pt2")
    try:
        made: Any = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "N"},),
            verbose=False,
        )
        made.model.producer_name = "resode"
        made.model.metadata_props.update(_told(card, takes))
        content = made.model_proto.SerializeToString()
    except Exception as error:  # whatever one of its hundreds of translations raises
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

    return _File(lambda file: file.write_bytes(content), read, made.model.opset_imports[""])


def _pt2(graph: nn.Module, example: Tensor, card: Card, takes: str, path: Path) -> _File:
    content = io.BytesIO()
    torch.export.save(_trace(graph, example, path), content, extra_files=_told(card, takes))

    def read(file: Path) -> Callable[[Tensor], Any]:
        with file.open("rb") as stream:
            return torch.export.load(stream).module()

    return _File(lambda file: file.write_bytes(content.getvalue()), read)


def _safetensors(graph: nn.Module, example: Tensor, card: Card, takes: str, path: Path) -> _File:
    if takes != "normalised":
        raise InputError(f"{path}: holds weights and no graph; input {takes} is for .onnx and .pt2")
    if card.specification is None:
        raise InputError(f"{path}: the module is no registered model; resode.weights.save keeps its tensors")
    return _File(lambda file: weights.save(graph, file, card), weights.load)


_FORMATS = {"onnx": _onnx, "pt2": _pt2, "safetensors": _safetensors}


def _told(card: Card, takes: str) -> dict[str, str]:
    """The card, and for readers that know nothing of it how images become logits, and what these mean."""
    known = card.preprocessing
    plain = {
        "mean": known.mean,
        "std": known.std,
        "size": known.size,
        "classes": known.classes,
        "input": takes,
    }
    return {"resode": card.to_json(), **{k: json.dumps(v, ensure_ascii=False) for k, v in plain.items()}}


def _onnx_runtime() -> Any:
    """ONNX Runtime, where all is there that writing an ONNX file needs."""
    try:
        return [importlib.import_module(name) for name in ("onnx", "onnxscript", "onnxruntime")][-1]
    except (ImportError, RuntimeError):
        raise InputError(
            "ONNX needs onnx, onnxscript and onnxruntime: pip install 'resode[export]'"
        ) from None


# ---------------------------------------------------------------- the graph, and its logits


def _trace(graph: nn.Module, example: Tensor, path: Path) -> torch.export.ExportedProgram:
    """The operations of a network, the same for any number of images and whatever they show."""
    for block in dynamic_blocks(graph):
        if not isinstance(block.stage.integrator, FixedStep):
            raise InputError(
                f"{path}: {block.stage.integrator.name} chooses its steps anew for each batch, and a graph "
                "cannot; train with a scheme of fixed steps (euler, rk4, ...), or export .safetensors"
            )
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    except Exception as error:  # whatever a line of somebody's forward raises
        raise InputError(
            f"{path}: torch.export cannot trace the network ({_reason(error)}); a graph needs the same "
            "operations for all images, .safetensors does not"
        ) from error


def _uses(program: torch.export.ExportedProgram, operation: str) -> bool:
    parts = (part for part in program.graph_module.modules() if isinstance(part, fx.GraphModule))
    return any(operation in str(node.target) for part in parts for node in part.graph.nodes)


def _reason(error: BaseException) -> str:
    """The first line of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _images(number: int, preprocessing: Preprocessing, takes: str) -> Tensor:
    """Random images, the same at each call."""
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
    """The largest difference of a logit, relative to the largest logit of its batch."""
    worst = 0.0
    for x in batches:
        wanted, found = network(x), exported(x)
        if not isinstance(wanted, Tensor) or wanted.ndim != 2:
            raise InputError(f"{path}: the network does not return logits (N, classes)")
        if not wanted.isfinite().all():
            raise IntegrityError(f"{path}: the network's logits are not finite: its weights are damaged")
        scale = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
        alike = found.shape == wanted.shape
        difference = float((found - wanted).abs().max() / scale) if alike else torch.inf
        if not difference <= PARITY:
            raise IntegrityError(
                f"{path}: not written: of {len(x)} images its logits would differ from the network's by "
                f"{difference:.1e} of the largest (at most {PARITY:g})"
            )
        worst = max(worst, difference)
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print, log and warn of: what matters is checked and raised here."""
    before, told = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
