"""Prediction: the most probable classes of images, of files and arrays alike."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from resode import data as datasets
from resode.data import Dataset, Images, tree
from resode.data.given import one_image, pixels_from
from resode.data.image_file import NoImageError
from resode.errors import InputError, IntegrityError, ResodeError
from resode.inference.frozen import Frozen
from resode.inference.trained import Network, Trained, kind_of, state_notes, trained_network
from resode.mode import mode
from resode.progress import report
from resode.training.records.state import UNKNOWN, State
from resode.training.setup.checks import check_output
from resode.weights import Preprocessing

BATCH = 256  # images at a time


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, in falling order of probability.

    Args:
        file: of the image; None where it was given as pixels.
        probabilities: by class.
    """

    file: Path | None
    probabilities: dict[str, float]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {100 * p:.1f} %" for name, p in self.probabilities.items())
        return f"{tree.text(self.file)}: {shown}" if self.file is not None else shown

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """The probability of that class."""
        return self.probabilities[self.class_name]

    def record(self) -> dict[str, Any]:
        """The prediction as JSON."""
        return {
            "file": None if self.file is None else tree.text(self.file),
            "class": self.class_name,
            "probability": self.probability,
            "probabilities": self.probabilities,
        }


@dataclass(frozen=True)
class Predictions:
    """Predictions in the order of the images, and an error for each file that could not be read.

    Args:
        images: a prediction for each image.
        errors: an error for each file.
        skipped: files of folders that are no images.
        state: how far the training of the weights came.
        notes: what the user should know, a line each.
    """

    images: tuple[Prediction, ...]
    errors: tuple[ResodeError, ...] = ()
    skipped: tuple[Path, ...] = ()
    state: State = UNKNOWN
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shown = [f"Predictions for {len(self.images):,} images", *map(repr, self.images[:5])]
        hidden = len(self.images) - 5
        more = [f"... and {hidden:,} more"] if hidden > 0 else []
        bad = (
            [f"{len(self.errors)} files could not be read; the first: {self.errors[0]}"]
            if self.errors
            else []
        )
        return "\n".join([*shown, *more, *bad, *self.notes])

    def records(self) -> list[dict[str, Any]]:
        """The predictions as JSON, each with the state of the weights."""
        return [each.record() | self.state.record() for each in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.images)

    def __getitem__(self, position: int) -> Prediction:
        if not self.images and self.errors:
            raise self.errors[0]  # predict(net, "misspelt.jpg")[0]
        return self.images[position]

    @property
    def classes(self) -> list[str]:
        """The most probable class of each image."""
        return [each.class_name for each in self.images]

    @property
    def probabilities(self) -> list[float]:
        """The probability of that class, for each image."""
        return [each.probability for each in self.images]


def predict(
    net: Network,
    images: Any,
    *,
    top: int = 3,
    precision: str = "fp32",
    freeze: bool = False,
    device: str = "auto",
) -> Predictions:
    """Classify images with the preprocessing that is stored with the weights.

        resode.predict("runs/r20", "cat.jpg")[0].class_name
        resode.predict(net, pixels).classes

    An image of 8-bit pixels is scaled and centre-cropped to the network's size; a file is turned upright
    (EXIF) before.

    Args:
        net: a network, which stays on its device; a run, a checkpoint, a .safetensors file, the name of
            pretrained weights, or the result of `resode.train`.
        images: image files, folders (which stand for the files in them, by name), PIL images, arrays or
            tensors (H, W), (H, W, C) or (C, H, W): one, or several; or a batch (N, H, W, C), (N, C, H, W) or
            (N, H, W), which (3, H, W) is for a network of grey images. Floats are from 0 to 1, before
            normalisation.
        top: how many classes to give for an image.
        precision: "fp32", or "bf16" for autocast.
        freeze: compile the network for inference first (`Frozen`).
        device: "auto", "cpu", "cuda", ...

    Raises:
        InputError: no such weights; images that are none, or do not fit the network.
        IntegrityError: corrupt weights, or weights that are not finite.
    """
    if type(top) is not int or top < 1:
        raise InputError(f"top cannot be {top!r}; give a number of classes")
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision cannot be {precision!r}; give 'fp32' or 'bf16'")
    trained = trained_network(net, device)
    decoded = _decoded(_given(images, trained.preprocessing), trained)
    found = decoded.pixels
    if found and not trained.is_file:
        height, width, channels = found[0].shape
        check_output(trained.module, (channels, height, width), None, "images", trained.dtype)
    network: nn.Module = Frozen(trained.module) if freeze else trained.module
    named: list[dict[str, float]] = []
    with mode(trained.module, training=False):
        for start in range(0, len(found), BATCH):
            batch = torch.from_numpy(np.stack(found[start : start + BATCH])).permute(0, 3, 1, 2)
            named += _most_probable(network, trained, batch, top, precision)
            report(f"classifying {len(found):,} images", min(1.0, (start + BATCH) / len(found)))
    notes = (*state_notes(trained.label, trained.module), *([trained.unsealed] if trained.unsealed else []))
    return Predictions(
        tuple(map(Prediction, decoded.files, named)), tuple(decoded.errors), tuple(decoded.skipped),
        trained.state, notes,
    )  # fmt: skip


def _given(images: Any, preprocessing: Preprocessing | None) -> list[Any]:
    """The images, one by one: paths, PIL images and arrays."""
    if isinstance(images, np.ndarray | Tensor | Images) and not len(images):
        raise InputError("images: there is none; give files, folders, PIL images, or arrays (N, H, W, C)")
    if isinstance(images, Images):
        return list(images.pixels)
    if isinstance(images, np.ndarray | Tensor):
        grey = preprocessing is not None and preprocessing.channels == 1  # (3, H, W) are three grey images
        one = images.ndim == 3 and (
            images.shape[2] in (1, 3) or images.shape[0] in ((1,) if grey else (1, 3))
        )
        return [images] if one or images.ndim == 2 else list(pixels_from(images))
    if isinstance(images, str | PathLike | Image.Image):
        return [images]
    if not isinstance(images, Iterable) or isinstance(images, Mapping | Dataset | bytes):
        raise InputError(
            f"images cannot be {kind_of(images)}; give files, folders, PIL images, or arrays (N, H, W, C)"
        )
    found = list(images)
    if not found:
        raise InputError("images: there is none; give files, folders, PIL images, or arrays (N, H, W, C)")
    return found


@dataclass
class _Decoded:
    """Pixels (H, W, C) of one shape with their files; errors of paths without images; files skipped."""

    pixels: list[npt.NDArray[Any]] = field(default_factory=list)
    files: list[Path | None] = field(default_factory=list)
    errors: list[ResodeError] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def _decoded(given: list[Any], trained: Trained) -> _Decoded:
    """Decode the images; files of folders that are no images are skipped."""
    decoded = _Decoded()
    for position, image in enumerate(given):
        if not isinstance(image, str | PathLike):
            name = f"image {position}"
            decoded.pixels.append(_fitted(one_image(image, name), name, trained))
            decoded.files.append(None)
            continue
        inside, errors = _files(Path(image))
        decoded.errors += errors
        no_images = 0
        for number, file in enumerate(inside, start=1):
            report(f"reading {image}", number / len(inside))
            try:
                pixels = datasets.decode(file, name=tree.text(file))
            except ResodeError as error:
                if isinstance(error, NoImageError) and tree.is_folder(Path(image)):
                    decoded.skipped.append(file)
                    no_images += 1
                else:
                    decoded.errors.append(error)
                continue
            decoded.pixels.append(_fitted(pixels, tree.text(file), trained))
            decoded.files.append(file)
        if inside and no_images == len(inside):
            decoded.errors.append(InputError(f"{tree.text(image)}: holds no images"))
    shapes = sorted({f"{p.shape} {p.dtype}" for p in decoded.pixels})
    if len(shapes) > 1:
        raise InputError(
            f"images of unequal shape or dtype ({' and '.join(shapes[:2])}); the network says no size: make "
            "them equal"
        )
    return decoded


def _fitted(pixels: npt.NDArray[Any], name: str, trained: Trained) -> npt.NDArray[Any]:
    """An image in the size and with the channels of the network."""
    trained.check_values(pixels, name)
    own = trained.preprocessing
    if own is None or pixels.shape == (*own.size, own.channels):
        return pixels
    if pixels.dtype != np.uint8:
        expected = "x".join(map(str, (*own.size, own.channels)))
        raise InputError(
            f"{name}: is {'x'.join(map(str, pixels.shape))}, the network takes {expected}; resize it"
        )
    return datasets.resize_and_crop(pixels, size=own.size, channels=own.channels)


def _files(path: Path) -> tuple[list[Path], list[ResodeError]]:
    """The file itself or the files in a folder, or an error."""
    if not tree.is_folder(path):
        found = [path] if os.path.lexists(path) else []
        return found, [] if found else [InputError(f"{tree.text(path)}: no such file")]
    found = tree.files(path)
    return found, [] if found else [InputError(f"{tree.text(path)}: holds no files")]


@torch.inference_mode()
def _most_probable(
    network: nn.Module, trained: Trained, pixels: Tensor, top: int, precision: str
) -> list[dict[str, float]]:
    """The `top` classes of each image with their probabilities; pixels are (N, C, H, W)."""
    preprocessing = trained.for_images(tuple(pixels.shape[2:]), pixels.shape[1], ())
    inputs = preprocessing(pixels.to(trained.device))
    with torch.autocast(trained.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = network(inputs)
    probabilities = logits.float().softmax(1).cpu()
    if not probabilities.isfinite().all():
        raise IntegrityError("the network's outputs are not finite: its weights are damaged")
    classes = preprocessing.classes or tuple(map(str, range(probabilities.shape[1])))
    if len(classes) != probabilities.shape[1]:
        raise InputError(f"the network gives {probabilities.shape[1]} logits for {len(classes)} classes")
    best = probabilities.topk(min(top, probabilities.shape[1]))
    return [
        {classes[i]: round(value, 6) for i, value in zip(indices, values, strict=True)}
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
