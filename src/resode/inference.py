"""Inference: evaluate a trained network on labelled images, classify images, freeze it for speed.

`evaluate` and `predict` take what a user has: a network, a run, a checkpoint, a .safetensors file, the name
of pretrained weights. Images get the preprocessing that is stored with the weights, and that a network keeps
from `resode.train` and `resode.load` as its attribute `preprocessing`. A network that has none gets 8-bit
pixels divided by 255, and floats as they are.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from resode import acceleration, weights
from resode import data as datasets
from resode.data import Dataset, FolderSplit, Images, Loader, tree
from resode.data.given import Labelled, labelled, one_image, pixels_from
from resode.data.image_file import NoImageError
from resode.data.matching import BY_NAME, BY_POSITION, How, class_order, image_size
from resode.data.raw import OnBadImage
from resode.data.sources import load_test, test_name
from resode.errors import InputError, IntegrityError, ResodeError
from resode.mode import mode
from resode.progress import report
from resode.training.launch import Result
from resode.training.loop.evaluation import Scores
from resode.training.loop.evaluation import evaluate as score
from resode.training.process.device import choose_device, place
from resode.training.recipe.experiment import CROSS_ENTROPY
from resode.training.records.locations import read_network, weights_file
from resode.training.records.run import Run
from resode.training.records.state import UNKNOWN, State, run_around, state_of
from resode.training.setup.checks import check_output
from resode.training.setup.data import split_note
from resode.training.setup.execution import own_compiler_cache
from resode.weights import Preprocessing

BATCH = 256  # images at a time in `predict`
Network = nn.Module | str | PathLike[str] | Run | Result
_NETWORKS = (
    "a network (nn.Module), a run, a checkpoint, a .safetensors file, or the name of pretrained weights"
)


@dataclass(frozen=True, eq=False)
class _Trained:
    """A network as the user gave it.

    Args:
        label: for messages.
        module: on its device.
        preprocessing: stored with its weights; None: unknown.
        model: its name.
        origin: the record of its training.
        is_file: whether it was read from a file.
        state: how far its training came.
        assumes_classes: whether nobody recorded the names of its classes.
        run: the run that its weights lie in, if they do.
    """

    label: str
    module: nn.Module
    preprocessing: Preprocessing | None
    model: str
    origin: Mapping[str, Any]
    is_file: bool
    state: State = UNKNOWN
    assumes_classes: bool = False
    run: Run | None = None

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parameters."""
        return next((p.dtype for p in self.module.parameters()), torch.float32)

    def for_images(self, size: tuple[int, ...], channels: int, classes: tuple[str, ...]) -> Preprocessing:
        """Its preprocessing; where it has none, pixels / 255 for such images."""
        if self.preprocessing is not None:
            return replace(self.preprocessing, dtype=self.dtype)
        return Preprocessing(
            (0.0,) * channels, (1.0,) * channels, (size[0], size[1]), channels, classes, self.dtype
        )

    def check_values(self, pixels: npt.NDArray[Any], name: str) -> None:
        """Raise `InputError` for pixels in another unit than the network was trained on."""
        trained_on = self.origin.get("pixels")
        if trained_on is not None and pixels.dtype == np.uint8:
            raise InputError(
                f"{name}: have 8-bit pixels, {self.label} was trained on {trained_on}; prepare them so"
            )
        if self.preprocessing is None or trained_on is not None or pixels.dtype == np.uint8:
            return
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 1:
            raise InputError(
                f"{name}: are floats from {low:.3g} to {high:.3g}; give them in 0 to 1, not normalised "
                f"({self.label} brings its own), or as uint8"
            )


def _trained(net: Network, device: str) -> _Trained:
    """The network; of a file on the device, else where it is.

    Raises:
        InputError: no network, or one on another device than is asked for.
    """
    run = net.run if isinstance(net, Result) else None
    if isinstance(net, Result):
        net = net.module
    if isinstance(net, Run):
        net = net.path
    if isinstance(net, str | PathLike):
        file = weights_file(Path(net) if isinstance(net, PathLike) else net)
        module: nn.Module = read_network(file)
        place(module, choose_device(device))
        return replace(_described(str(net), module, is_file=True), run=run_around(file))
    if not isinstance(net, nn.Module):
        fix = f": {net.__name__}(...)" if isinstance(net, type) else ""
        raise InputError(f"cannot evaluate {_kind(net)}; give {_NETWORKS}{fix}")
    net = getattr(net, "_orig_mod", net)
    places = sorted({str(p.device) for p in net.parameters()})
    if len(places) > 1 or "meta" in places:
        raise InputError(f"the network has parameters on {' and '.join(places)}; move it: net.to('cpu')")
    if device != "auto" and places and torch.device(places[0]).type != choose_device(device).type:
        raise InputError(f"the network is on {places[0]}, not on {device}; move it: net.to({device!r})")
    return replace(_described("the network", net, is_file=False), run=run)


def _described(label: str, module: nn.Module, *, is_file: bool) -> _Trained:
    card, preprocessing = getattr(module, "card", None), getattr(module, "preprocessing", None)
    known = card if isinstance(card, weights.Card) else None
    specification = known.specification if known is not None else None
    return _Trained(
        label,
        module,
        preprocessing if isinstance(preprocessing, Preprocessing) else None,
        type(module).__name__ if specification is None else specification.name,
        {} if known is None else known.training,
        is_file,
        state_of(known),
        known is not None and known.assumes_classes,
    )


def _kind(value: object) -> str:
    return (
        f"the class {value.__name__}"
        if isinstance(value, type)
        else f"a value of type {type(value).__name__}"
    )


# ---------------------------------------------------------------- evaluation


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a trained network on a split of a data set.

    Args:
        path: what was evaluated, as it was given.
        model: name of the network.
        data: the data set.
        split: "test" or "train"; "validation" for the images of `val/` in a folder without `test/`.
        scores: loss, errors and confusions.
        module: the network, on its device.
        network: what was scored: `module`, or `module` frozen.
        preprocessing: of the images.
        images: what it was scored on, labelled in the network's order of classes.
        skipped: images that could not be decoded, a line each.
        matching: how the classes of the data were found among the network's: "by-name", "by-position",
            "assumed" (the network's names are, and class i was taken as logit i), or a mapping.
        state: how far the training of the weights came.
        notes: what the user should know, a line each.
    """

    path: str
    model: str
    data: str
    split: str
    scores: Scores
    module: nn.Module
    network: nn.Module
    preprocessing: Preprocessing
    images: Images
    skipped: tuple[str, ...]
    matching: How
    state: State
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [
            f"{self.model} on {self.data} ({self.split}, {self.samples:,} images, {self.scores.precision}): "
            f"top-1 error {self.top1_error:.2f} %, loss {self.loss:.4f}",
            *self.notes,
        ]
        return "\n".join(lines)

    @property
    def top1_error(self) -> float:
        """Percent of the images classified incorrectly."""
        return self.scores.top1_error

    @property
    def top1_accuracy(self) -> float:
        """Percent of the images classified correctly."""
        return self.scores.top1_accuracy

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.scores.loss

    @property
    def samples(self) -> int:
        """Number of images."""
        return self.scores.samples

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.preprocessing.classes

    @property
    def confusion(self) -> Tensor:
        """(classes, classes) int64: images of each true class (rows) by the class they were taken for."""
        return self.scores.confusion

    def record(self) -> dict[str, Any]:
        """The evaluation as JSON."""
        return self.scores.record() | {
            "data": self.data,
            "split": self.split,
            "model": self.model,
            "path": self.path,
            "classes": self.matching,
            "skipped": len(self.skipped),
            **self.state.record(),
        }


def evaluate(
    net: Network,
    data: Any = None,
    *,
    split: str = "test",
    classes: How = BY_NAME,
    on_bad_image: OnBadImage | None = None,
    precision: str = "fp32",
    freeze: bool = False,
    batch_size: int = 500,
    device: str = "auto",
) -> Evaluation:
    """Score a trained network on labelled images, each counted once.

        resode.evaluate("runs/r20").top1_error
        resode.evaluate(net, (images, labels))

    Args:
        net: a network, which stays on its device; a run, a checkpoint, a .safetensors file, the name of
            pretrained weights, or the result of `resode.train`.
        data: arrays (images, labels), a torch Dataset, a loaded data set, a folder, a name, or a run, whose
            data is taken (default: the data that the weights were trained on).
        split: "test" or "train", where the data has both.
        classes: how the classes of the data are found among the network's: "by-name", "by-position" (class i
            of the data is logit i), or a mapping from names in the data to the network's. Arrays have no
            names: their labels are numbers of logits, unless a mapping from "0", "1", ... is given.
        on_bad_image: "error", or "skip" to skip images that cannot be decoded (default: as the run recorded
            it, for its own data; else "error").
        precision: "fp32", or "bf16" for autocast.
        freeze: compile the network for inference first (`Frozen`).
        batch_size: images at a time.
        device: "auto", "cpu", "cuda", ...

    Raises:
        InputError: no such weights or data; images or classes that do not fit the network.
        IntegrityError: corrupt files, weights that are not finite.
    """
    if split not in ("test", "train"):
        raise InputError(f"split cannot be {split!r}; give 'test' or 'train'")
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size cannot be {batch_size!r}; give a number of images")
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision cannot be {precision!r}; give 'fp32' or 'bf16'")
    if not isinstance(classes, str | Mapping):
        raise InputError(f"classes cannot be {_kind(classes)}; give 'by-name', 'by-position' or a mapping")
    trained = _trained(net, device)
    source = _source(trained, data)
    given = _images_for(
        trained, source, split, on_bad_image or _recorded_policy(trained, data, source), classes
    )
    found = given.images
    size, channels = found.images.pixels.shape[1:3], found.images.pixels.shape[3]
    preprocessing = trained.for_images(size, channels, found.classes)
    if not trained.is_file:
        check_output(trained.module, (channels, *size), len(found.classes), found.name, trained.dtype)
    network: nn.Module = Frozen(trained.module) if freeze else trained.module
    batches = Loader(
        found.images,
        np.arange(len(found.images)),
        batch_size=batch_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        device=trained.device,
        dtype=trained.dtype,
    )
    total, done = len(found.images), 0

    def scored(samples: int) -> None:
        nonlocal done
        done += samples
        report(f"evaluating {total:,} images", done / total)

    scores = score(network, batches, precision=precision, on_batch=scored)
    if not math.isfinite(scores.loss):
        raise IntegrityError(
            f"{trained.label}: the loss on {found.name} is {scores.loss}: the weights are not finite"
        )
    return Evaluation(
        path=trained.label,
        model=trained.model,
        data=found.name,
        split=given.split,
        scores=scores,
        module=trained.module,
        network=network,
        preprocessing=preprocessing,
        images=found.images,
        skipped=found.skipped,
        matching=given.matching,
        state=trained.state,
        notes=(*given.notes, *_about(trained)),
    )


def _about(trained: _Trained) -> Iterator[str]:
    """What the user should know of a network, a line each."""
    if trained.preprocessing is None:
        yield "the network has no preprocessing: it got 8-bit pixels divided by 255, and floats as they are"
    yield from state_notes(trained.label, trained.module)
    if trained.assumes_classes:
        yield f"{trained.label}: the names of its classes are assumed; its checkpoint had none"
    loss = trained.origin.get("loss", CROSS_ENTROPY)
    if loss != CROSS_ENTROPY:
        yield f"the loss is cross-entropy; {trained.label} was trained by {loss}"


def state_notes(path: str | Path, module: nn.Module) -> Iterator[str]:
    """Lines about weights of a run that did not finish; none about all others."""
    card = getattr(module, "card", None)
    if not isinstance(card, weights.Card):
        return
    if note := state_of(card).note(path):
        yield note
    if card.training.get("averaged") is False:
        yield f"{path}: weights of the last step; averaged ones are written at the end of the run"


def _source(trained: _Trained, data: Any) -> Any:
    """The data: as given, that of a run, or what the network was trained on."""
    if isinstance(data, str | PathLike) and Run(Path(data)).exists:
        data = Run(Path(data))
    if isinstance(data, Run):
        return data.read_experiment().data.source
    if data is not None:
        return str(data) if isinstance(data, PathLike) else data
    source = trained.origin.get("data")
    if source is None:
        raise InputError(f"{trained.label}: does not say what it was trained on; give data (--data)")
    return str(source)


def _recorded_policy(trained: _Trained, data: Any, source: Any) -> OnBadImage:
    """What the run whose data it is recorded about images that cannot be decoded."""
    run = Run(Path(data)) if isinstance(data, str | PathLike) and Run(Path(data)).exists else data
    run = run if isinstance(run, Run) else trained.run
    if run is None or not isinstance(source, str):
        return "error"
    try:
        section = run.read_experiment().data
    except InputError:  # of an earlier version
        return "error"
    same = section.source == source or _same_folder(section.source, source)
    return section.on_bad_image if same else "error"


def _same_folder(one: str, other: str) -> bool:
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return first.is_dir() and first.resolve() == second.resolve()


@dataclass(frozen=True, eq=False)
class _Given:
    """Labelled images as a network takes them, in its order of classes.

    Args:
        images: with the names of the network's classes.
        split: "test", "train", or "validation".
        matching: as of `Evaluation`.
        notes: what the user should know, a line each.
    """

    images: Labelled
    split: str
    matching: How
    notes: tuple[str, ...]


def _read(
    trained: _Trained, source: str, split: str, on_bad_image: OnBadImage
) -> tuple[Labelled, str, list[str]]:
    """The images of one split of a data set by name, what the split is called, and notes."""
    own = trained.preprocessing
    side = None if own is None else image_size(source, own.size)
    called = test_name(source) if split == "test" else split
    if split == "test" and (alone := load_test(source, image_size=side, on_bad_image=on_bad_image)):
        return replace(labelled(alone, "train", None), name=source), called, []
    dataset = datasets.load(
        source, image_size=side, on_bad_image=on_bad_image, split=_recorded_split(trained, source)
    )
    if split == "test" and dataset.test is None:
        raise InputError(f"{source}: has no test images; evaluate on --split train, or give other --data")
    notes = [split_note(dataset)] if dataset.split else []
    return replace(labelled(dataset, split, None), name=source), called, notes


def _images_for(trained: _Trained, source: Any, split: str, on_bad_image: OnBadImage, classes: How) -> _Given:
    """Labelled images as the network takes them."""
    own, notes = trained.preprocessing, list[str]()
    if isinstance(source, str):
        found, split, notes = _read(trained, source, split, on_bad_image)
    else:
        found = labelled(source, split, None if own is None else own.classes)
    trained.check_values(found.images.pixels, found.name)
    if own is None:
        if classes != BY_NAME and classes != BY_POSITION:
            raise InputError(f"{trained.label}: records no class names; drop the mapping of classes")
        return _Given(found, split, BY_POSITION, tuple(notes))
    channels = found.images.pixels.shape[3]
    if channels != own.channels:
        raise InputError(
            f"{found.name}: its images have {channels} channels, the network takes {own.channels}"
        )
    height, width = found.images.pixels.shape[1:3]
    if not isinstance(source, str) and (height, width) != own.size:
        raise InputError(
            f"{found.name}: its images are {height}x{width}, the network takes {own.size[0]}x{own.size[1]}; "
            "resize them"
        )
    if not found.named and classes == BY_NAME:
        return _Given(replace(found, classes=own.classes), split, BY_POSITION, tuple(notes))
    order = class_order(found.name, found.classes, own.classes, classes, assumed=trained.assumes_classes)
    notes = [*notes, *([order.note] if order.note else [])]
    relabelled = replace(found, images=order.relabel(found.images), classes=own.classes)
    return _Given(relabelled, split, order.how, tuple(notes))


def _recorded_split(trained: _Trained, source: str) -> FolderSplit | None:
    """How test images were chosen where the network was trained on this folder."""
    recorded, data = trained.origin.get("split"), trained.origin.get("data")
    same = source == data or str(Path(source).expanduser().resolve()) == data
    return FolderSplit(recorded["test"], recorded["seed"]) if recorded and same else None


# ---------------------------------------------------------------- prediction


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
    trained = _trained(net, device)
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
    return Predictions(
        tuple(map(Prediction, decoded.files, named)), tuple(decoded.errors), tuple(decoded.skipped),
        trained.state, tuple(state_notes(trained.label, trained.module)),
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
            f"images cannot be {_kind(images)}; give files, folders, PIL images, or arrays (N, H, W, C)"
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


def _decoded(given: list[Any], trained: _Trained) -> _Decoded:
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


def _fitted(pixels: npt.NDArray[Any], name: str, trained: _Trained) -> npt.NDArray[Any]:
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
    network: nn.Module, trained: _Trained, pixels: Tensor, top: int, precision: str
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
