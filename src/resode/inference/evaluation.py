"""Evaluation: the scores of a network on labelled images, each counted once."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from resode import data as datasets
from resode.data import FolderSplit, Images, Loader
from resode.data.given import Labelled, labelled
from resode.data.matching import BY_NAME, BY_POSITION, How, class_order, image_size
from resode.data.raw import OnBadImage
from resode.data.sources import load_test, test_name
from resode.errors import InputError, IntegrityError
from resode.inference.frozen import Frozen
from resode.inference.trained import Network, Trained, kind_of, state_notes, trained_network
from resode.progress import report
from resode.training.loop.evaluation import Scores
from resode.training.loop.evaluation import evaluate as score
from resode.training.recipe.experiment import CROSS_ENTROPY
from resode.training.records.run import Run
from resode.training.records.state import State
from resode.training.setup.checks import check_output
from resode.training.setup.data import split_note
from resode.weights import Preprocessing


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
        raise InputError(f"classes cannot be {kind_of(classes)}; give 'by-name', 'by-position' or a mapping")
    trained = trained_network(net, device)
    given = prepare(trained, data, split=split, classes=classes, on_bad_image=on_bad_image)
    found, preprocessing = given.images, given.preprocessing
    network: nn.Module = Frozen(trained.module) if freeze else trained.module
    batches = given.batches(batch_size)
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


def _about(trained: Trained) -> Iterator[str]:
    """What the user should know of a network, a line each."""
    if trained.preprocessing is None:
        yield "the network has no preprocessing: it got 8-bit pixels divided by 255, and floats as they are"
    yield from state_notes(trained.label, trained.module)
    if trained.unsealed:
        yield trained.unsealed
    if trained.assumes_classes:
        yield f"{trained.label}: the names of its classes are assumed; its checkpoint had none"
    loss = trained.origin.get("loss", CROSS_ENTROPY)
    if loss != CROSS_ENTROPY:
        yield f"the loss is cross-entropy; {trained.label} was trained by {loss}"


def _source(trained: Trained, data: Any) -> Any:
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


def _recorded_policy(trained: Trained, data: Any, source: Any) -> OnBadImage:
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
class Prepared:
    """Labelled images as a network takes them, in its order of classes.

    Args:
        trained: the network.
        images: with the names of the network's classes.
        split: "test", "train", or "validation".
        matching: as of `Evaluation`.
        notes: what the user should know, a line each.
    """

    trained: Trained
    images: Labelled
    split: str
    matching: How
    notes: tuple[str, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the images; pixels / 255 where the network has none."""
        pixels = self.images.images.pixels
        return self.trained.for_images(pixels.shape[1:3], pixels.shape[3], self.images.classes)

    def batches(self, batch_size: int, number: int | None = None) -> Loader:
        """Batches of the first `number` images (default: all), normalised, on the network's device."""
        images, preprocessing = self.images.images, self.preprocessing
        return Loader(
            images,
            np.arange(len(images) if number is None else min(number, len(images))),
            batch_size=batch_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            device=self.trained.device,
            dtype=self.trained.dtype,
        )


def prepare(
    trained: Trained,
    data: Any = None,
    *,
    split: str = "test",
    classes: How = BY_NAME,
    on_bad_image: OnBadImage | None = None,
) -> Prepared:
    """The labelled images of one split for a network; arguments and errors as of `evaluate`."""
    source = _source(trained, data)
    policy = on_bad_image or _recorded_policy(trained, data, source)
    given = _images_for(trained, source, split, policy, classes)
    if not trained.is_file:
        found = given.images
        height, width, channels = found.images.pixels.shape[1:]
        check_output(trained.module, (channels, height, width), len(found.classes), found.name, trained.dtype)
    return given


def _read(
    trained: Trained, source: str, split: str, on_bad_image: OnBadImage
) -> tuple[Labelled, str, list[str]]:
    """The images of one split of a data set by name, what the split is called, and notes."""
    own = trained.preprocessing
    side = None if own is None else image_size(source, own.size)
    called = test_name(source) if split == "test" else split
    if split == "test" and (alone := load_test(source, image_size=side, on_bad_image=on_bad_image)):
        return replace(labelled(alone, "train", None), name=source), called, [*alone.notes]
    dataset = datasets.load(
        source, image_size=side, on_bad_image=on_bad_image, split=_recorded_split(trained, source)
    )
    if split == "test" and dataset.test is None:
        raise InputError(f"{source}: has no test images; evaluate on --split train, or give other --data")
    notes = [*dataset.notes, *([split_note(dataset)] if dataset.split else [])]
    return replace(labelled(dataset, split, None), name=source), called, notes


def _images_for(
    trained: Trained, source: Any, split: str, on_bad_image: OnBadImage, classes: How
) -> Prepared:
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
        return Prepared(trained, found, split, BY_POSITION, tuple(notes))
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
        return Prepared(trained, replace(found, classes=own.classes), split, BY_POSITION, tuple(notes))
    order = class_order(found.name, found.classes, own.classes, classes, assumed=trained.assumes_classes)
    notes = [*notes, *([order.note] if order.note else [])]
    relabelled = replace(found, images=order.relabel(found.images), classes=own.classes)
    return Prepared(trained, relabelled, split, order.how, tuple(notes))


def _recorded_split(trained: Trained, source: str) -> FolderSplit | None:
    """How test images were chosen where the network was trained on this folder."""
    recorded, data = trained.origin.get("split"), trained.origin.get("data")
    same = source == data or str(Path(source).expanduser().resolve()) == data
    return FolderSplit(recorded["test"], recorded["seed"]) if recorded and same else None
