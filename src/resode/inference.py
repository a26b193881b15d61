"""Inference: evaluate a trained network on labelled images, classify image files, freeze it for speed.

`evaluate` and `predict` take what a user has: a run, a checkpoint, a .safetensors file, the name of
pretrained weights. Images get the preprocessing that is stored with the weights.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resode import acceleration, weights
from resode import data as datasets
from resode.data import FolderSplit, Images, Loader
from resode.data.image_file import NoImageError
from resode.data.matching import class_order, image_size
from resode.data.raw import OnBadImage
from resode.errors import InputError, IntegrityError, ResodeError
from resode.progress import report
from resode.training.loop.evaluation import Scores
from resode.training.loop.evaluation import evaluate as score
from resode.training.process.device import choose_device, place
from resode.training.records.locations import weights_file
from resode.training.setup.data import split_note
from resode.training.setup.execution import own_compiler_cache
from resode.weights import Loaded, Preprocessing

BATCH = 256  # images at a time in `predict`


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a trained network on a split of a data set.

    Args:
        path: what was evaluated, as it was given.
        model: name of the network.
        data: the data set.
        split: "test" or "train".
        scores: loss, errors and confusions.
        module: the network, on its device.
        network: what was scored: `module`, or `module` frozen.
        images: what it was scored on, labelled in the network's order of classes.
        skipped: images that could not be decoded, a line each.
        notes: what the user should know, a line each.
    """

    path: str
    model: str
    data: str
    split: str
    scores: Scores
    module: Loaded
    network: nn.Module
    images: Images
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Evaluation({self.model} on {self.data}, {self.split} images: {self.scores})"

    def record(self) -> dict[str, Any]:
        """The evaluation as JSON."""
        return self.scores.record() | {
            "data": self.data,
            "split": self.split,
            "model": self.model,
            "path": self.path,
            "skipped": len(self.skipped),
        }


def evaluate(
    path: str | Path,
    *,
    data: str | None = None,
    split: str = "test",
    on_bad_image: OnBadImage = "error",
    precision: str = "fp32",
    freeze: bool = False,
    batch_size: int = 500,
    device: str = "auto",
) -> Evaluation:
    """Score trained weights on labelled images, each counted once.

    Args:
        path: a run, a checkpoint, a .safetensors file or the name of pretrained weights.
        data: a data set as `resode.load_data` takes it (default: the one that the weights were trained on).
        split: "test" or "train".
        on_bad_image: "error", or "skip" to skip images that cannot be decoded.
        precision: "fp32", or "bf16" for autocast.
        freeze: compile the network for inference first (`Frozen`).
        batch_size: images at a time.
        device: "auto", "cpu", "cuda", ...

    Raises:
        InputError: no such weights or data; images or classes that do not fit the network.
        IntegrityError: corrupt files, weights that are not finite.
    """
    module = weights.load(weights_file(path))
    specification, origin = module.card.specification, module.card.training
    assert specification is not None  # else it could not have been loaded
    source = data or origin.get("data")
    if source is None:
        raise InputError(f"{path}: does not say what it was trained on; give --data")
    source = str(source)
    same = source == origin.get("data") or str(Path(source).expanduser().resolve()) == origin.get("data")
    recorded = origin.get("split") if same else None
    test_split = FolderSplit(recorded["test"], recorded["seed"]) if recorded else None
    images, skipped, about = _labelled_images(source, split, on_bad_image, module.preprocessing, test_split)
    place(module, choose_device(device))
    network = Frozen(module) if freeze else module
    done = 0

    def scored(samples: int) -> None:
        nonlocal done
        done += samples
        report(f"evaluating {len(images):,} images", done / len(images))

    scores = score(network, _batches(module, images, batch_size), precision=precision, on_batch=scored)
    if not math.isfinite(scores.loss):
        raise IntegrityError(f"{path}: the loss on {source} is {scores.loss}: the weights are not finite")
    notes = list(about)
    if not_averaged := last_step_note(path, module):
        notes.append(not_averaged)
    return Evaluation(
        path=str(path),
        model=specification.name,
        data=source,
        split=split,
        scores=scores,
        module=module,
        network=network,
        images=images,
        skipped=skipped,
        notes=tuple(notes),
    )


def last_step_note(path: str | Path, module: Loaded) -> str:
    """A line about weights of an unfinished run that will be averaged at its end; empty for all others."""
    if module.card.training.get("averaged") is not False:
        return ""
    return f"{path}: these are the weights of the last step; averaged ones are written at the end of the run"


def _labelled_images(
    source: str,
    split: str,
    on_bad_image: OnBadImage,
    preprocessing: Preprocessing,
    test_split: FolderSplit | None,
) -> tuple[Images, tuple[str, ...], list[str]]:
    """The images of a split at the network's size, in its order of classes; skipped ones; notes."""
    side = image_size(source, preprocessing.size)
    dataset = datasets.load(source, image_size=side, on_bad_image=on_bad_image, split=test_split)
    images = dataset.train if split == "train" else dataset.test
    if images is None:
        raise InputError(f"{source}: has no test images; evaluate on --split train, or give other --data")
    channels = images.pixels.shape[3]
    if channels != preprocessing.channels:
        raise InputError(
            f"{source}: its images have {channels} channels, the network takes {preprocessing.channels}"
        )
    order = class_order(source, dataset.classes, preprocessing.classes)
    notes = [*([order.note] if order.note else []), *([split_note(dataset)] if dataset.split else [])]
    return order.relabel(images), dataset.skipped, notes


def _batches(module: Loaded, images: Images, batch_size: int) -> Loader:
    """Normalised images in their own order, in the dtype and on the device of the network."""
    own = next(module.parameters())
    return Loader(
        images,
        np.arange(len(images)),
        batch_size=batch_size,
        mean=module.preprocessing.mean,
        std=module.preprocessing.std,
        device=own.device,
        dtype=own.dtype,
    )


# ---------------------------------------------------------------- image files


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image file, in falling order of probability."""

    file: Path
    probabilities: dict[str, float]

    def __repr__(self) -> str:
        ranked = ", ".join(f"{name} {100 * p:.1f} %" for name, p in self.probabilities.items())
        return f"{self.file}: {ranked}"

    def record(self) -> dict[str, Any]:
        """The prediction as JSON."""
        first, probability = next(iter(self.probabilities.items()))
        return {
            "file": str(self.file),
            "class": first,
            "probability": probability,
            "probabilities": self.probabilities,
        }


@dataclass(frozen=True)
class Predictions:
    """Predictions for the files that could be read.

    Args:
        images: the predictions.
        errors: one for each file that could not be read.
        skipped: files of folders that are no images.
    """

    images: tuple[Prediction, ...]
    errors: tuple[ResodeError, ...]
    skipped: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        lines = [str(image) for image in self.images[:5]]
        lines += [f"... and {len(self.images) - 5:,} more"] * (len(self.images) > 5)
        lines += [f"{len(self.errors):,} not read"] * bool(self.errors)
        return "\n".join((f"Predictions({len(self.images):,} images)", *(f"  {line}" for line in lines)))


def predict(
    path: str | Path,
    images: Iterable[Path],
    *,
    top: int = 3,
    precision: str = "fp32",
    freeze: bool = False,
    device: str = "auto",
) -> Predictions:
    """Classify image files with the preprocessing that is stored with the weights.

    An image is turned upright (EXIF), scaled and centre-cropped to the network's size.

    Args:
        path: a run, a checkpoint, a .safetensors file or the name of pretrained weights.
        images: image files; a folder stands for the images in it, by name.
        top: how many classes to give for an image.
        precision: "fp32", or "bf16" for autocast.
        freeze: compile the network for inference first (`Frozen`).
        device: "auto", "cpu", "cuda", ...

    Raises:
        InputError: no such weights.
        IntegrityError: corrupt weights, or weights that are not finite.
    """
    files, inside, missing = _files(images)
    module = weights.load(weights_file(path))
    module.to(choose_device(device))
    pixels, readable, unreadable = _decoded(files, module.preprocessing)
    no_images = {file for file, error in unreadable if file in inside and isinstance(error, NoImageError)}
    errors = [*missing, *(error for file, error in unreadable if file not in no_images)]
    with_images = {folder for file, folder in inside.items() if file not in no_images}
    errors += [InputError(f"{each}: holds no images") for each in {*inside.values()} - with_images]
    network = Frozen(module) if freeze else module
    named: list[dict[str, float]] = []
    for start in range(0, len(pixels), BATCH):
        batch = torch.stack(pixels[start : start + BATCH])
        named += _most_probable(network, module, batch, top, precision)
        report(f"classifying {len(pixels):,} images", min(1.0, (start + BATCH) / len(pixels)))
    return Predictions(tuple(map(Prediction, readable, named)), tuple(errors), tuple(sorted(no_images)))


def _files(images: Iterable[Path]) -> tuple[list[Path], dict[Path, Path], list[ResodeError]]:
    """The files, with those in folders; the folder of each of these; an error for each path without any."""
    files: list[Path] = []
    inside: dict[Path, Path] = {}
    missing: list[ResodeError] = []
    for image in images:
        if image.is_dir():
            found = sorted(p for p in image.rglob("*") if p.is_file() and not p.name.startswith("."))
            if not found:
                missing.append(InputError(f"{image}: holds no files"))
            files.extend(found)
            inside |= dict.fromkeys(found, image)
        elif image.is_file():
            files.append(image)
        else:
            missing.append(InputError(f"{image}: no such file"))
    return files, inside, missing


def _decoded(
    files: list[Path], preprocessing: Preprocessing
) -> tuple[list[Tensor], list[Path], list[tuple[Path, ResodeError]]]:
    """Pixels (C, H, W) uint8 of the images, their files, and the other files, each with its error."""
    pixels, readable, errors = [], [], []
    for number, file in enumerate(files, start=1):
        report(f"reading {len(files):,} files", number / len(files))
        try:
            image = datasets.decode(file, name=str(file))
            image = datasets.resize_and_crop(image, size=preprocessing.size, channels=preprocessing.channels)
        except ResodeError as error:
            errors.append((file, error))
            continue
        pixels.append(torch.from_numpy(image).permute(2, 0, 1))
        readable.append(file)
    return pixels, readable, errors


@torch.inference_mode()
def _most_probable(
    network: nn.Module, module: Loaded, pixels: Tensor, top: int, precision: str
) -> list[dict[str, float]]:
    """The `top` classes of each image with their probabilities; pixels are (N, C, H, W) uint8."""
    classes, device = module.preprocessing.classes, next(module.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = network(module.preprocessing(pixels.to(device)))
    probabilities = logits.float().softmax(1).cpu()
    if not probabilities.isfinite().all():
        raise IntegrityError("the network's outputs are not finite: its weights are damaged")
    best = probabilities.topk(min(top, probabilities.shape[1]))
    return [
        {classes[i]: round(value, 6) for i, value in zip(indices, values, strict=True)}
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


# ---------------------------------------------------------------- frozen networks


class Frozen(nn.Module):
    """A network in evaluation mode, compiled for inference at its first batch.

    Under bfloat16 autocast on a CPU, a network that the registered inference program supports
    (`acceleration.program`) runs as such a program: a few images at a time pass through all layers. Any other
    is compiled by torch with constants folded: gamma (W y - mean) / sqrt(var + eps) + beta becomes one
    convolution.
    This takes about ten seconds. The compiled batch size is that of the first batch: smaller batches are
    padded with zeros, larger ones are split.

    Args:
        module: (N, C, H, W) -> logits. It is kept and switched to evaluation mode; changes of its weights
            after the first batch may have no effect.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()
        self.programs: dict[torch.Size, Callable[[Tensor], Tensor] | None] = {}  # by image shape
        self.compiled: Callable[[Tensor], Tensor] | None = None
        self.size = 0  # the batch size that `compiled` takes

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, C, H, W), for any N."""
        program = self._program(x)
        if program is not None:
            return program(x)
        if self.compiled is None:
            own_compiler_cache()
            self.compiled = torch.compile(self.module, options={"freezing": True}, dynamic=False)
            self.size = len(x)
        return torch.cat([self._logits(part) for part in x.split(self.size)])

    def _program(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The inference program for images like x, built at the first batch of their size."""
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if x.device.type != "cpu" or not half or x.dtype not in (torch.float32, torch.bfloat16):
            return None
        if x.shape[1:] not in self.programs:
            self.programs[x.shape[1:]] = acceleration.program.get()(self.module, x)
        return self.programs[x.shape[1:]]

    def _logits(self, x: Tensor) -> Tensor:
        assert self.compiled is not None
        if len(x) == self.size:
            return self.compiled(x)
        padded = x.new_zeros(self.size, *x.shape[1:]).to(memory_format=torch.channels_last)
        padded[: len(x)] = x
        return self.compiled(padded)[: len(x)]
