"""Training data: the images of a run, their division, and the numbers that normalise them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resode import randomness, weights
from resode.data import (
    Dataset,
    FolderSplit,
    Images,
    Loader,
    channel_statistics,
    hub,
    load,
    validation_split,
)
from resode.data.decoding import UnequalSizesError
from resode.data.sources import test_name
from resode.errors import InputError, IntegrityError
from resode.memory import Shape
from resode.training.recipe.data import Data, Split
from resode.training.recipe.experiment import Experiment
from resode.training.setup.placement import Placement
from resode.training.setup.warm_start import StartingPoint

FEW = 100  # training images of a class, below which random initial weights rarely do well


class TrainingData:
    """The images of a run: read, divided into training and validation images, and normalised.

    Mean and std are those of the settings, else those of the weights that training starts from, else measured
    on the training images.

    Args:
        section: the settings.
        seed: decides which images are held out.
        start: the weights that training starts from.
        usual: (C, H, W) of the images that the network is made for; None: not known.
        dataset: the images, where the program holds them; default: read from the source.

    Attributes:
        section: the settings with source (and its commit), split, size, mean, std and fingerprint.
        dataset: the decoded images.
        train_index: positions of the training images in `dataset.train`.
        validation_index: positions of the images held out.

    Raises:
        InputError: no such data, a single class, or another number of channels than weights or settings have.
        IntegrityError: the data has changed since the settings were resolved.
    """

    def __init__(
        self,
        section: Data,
        seed: int,
        start: StartingPoint,
        usual: Shape | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        self.usual, self.resized = usual, False
        try:
            dataset = _read(section, dataset)
        except UnequalSizesError:
            if usual is None or usual[1] != usual[2]:
                raise
            section, self.resized = section.model_copy(update={"image_size": usual[1]}), True
            dataset = _read(section)
        self.dataset = dataset
        start.check_channels(dataset)
        self.train_index, self.validation_index = validation_split(dataset.train, section.validation, seed)
        mean, std = section.mean, section.std
        if mean is None and start.normalisation is not None:
            mean, std = start.normalisation
        if mean is None or std is None:
            measured = channel_statistics(dataset.train, self.train_index)
            mean, std = mean or measured[0], std or tuple(max(s, 1e-3) for s in measured[1])
        channels = self.shape[0]
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != channels or not all(map(math.isfinite, values)):
                raise InputError(
                    f"data.{key}: has {len(values)} numbers, the images have {channels} channels"
                )
        source = dataset.name if section.source.startswith(hub.PREFIX) else section.source  # with its commit
        split = dataset.split and Split(test=dataset.split.share, seed=dataset.split.seed)
        resolved = {
            "source": source, "split": split, "mean": mean, "std": std, "fingerprint": dataset.fingerprint
        }  # fmt: skip
        self.section = section.model_copy(update=resolved)
        self.mean, self.std = mean, std

    @property
    def shape(self) -> Shape:
        """(C, H, W) of an image."""
        return image_shape(self.dataset)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.dataset.classes

    @property
    def floats(self) -> str:
        """The range of float pixels that no 8-bit image stands for, in words; empty within 0 to 1."""
        pixels = self.dataset.train.pixels
        low, high = (0.0, 1.0) if pixels.dtype == np.uint8 else (float(pixels.min()), float(pixels.max()))
        return "" if low >= 0 and high <= 1 else f"floats from {low:.3g} to {high:.3g}"

    @property
    def preprocessing(self) -> weights.Preprocessing:
        """Size, normalisation and classes, as a weights file records them."""
        channels, *size = self.shape
        return weights.Preprocessing(self.mean, self.std, (size[0], size[1]), channels, self.classes)

    def notes(self) -> Iterator[str]:
        """What the user should know of these images: the test images, their size, how few they are."""
        data, (channels, height, width) = self.dataset, self.shape
        yield from data.notes
        if data.split is not None:
            yield split_note(data)
        if test_name(data.name) == "validation":
            yield f"{data.name} has no test/: its test images are those called validation"
        if self.resized:
            yield (
                f"images of different sizes: scaled and cropped to {height}x{width}, as the network is made "
                "for; --set data.image_size=N for another size"
            )
        if self.usual is None or self.usual == self.shape:
            return
        usual, shape = ("x".join(map(str, each)) for each in (self.usual, self.shape))
        pixels = height * width / (self.usual[1] * self.usual[2])
        if channels != self.usual[0]:
            kinds = {1: "grey", 3: "in colour"}
            yield f"the images are {kinds[channels]} ({shape}), the recipe is made for {usual}"
        if pixels > 2:
            yield (
                f"the images have {shape}, the recipe is made for {usual}: a step costs {pixels:.0f} times "
                f"as much; --set data.image_size={self.usual[1]} scales them"
            )
        elif pixels < 0.5:
            yield f"the images have {shape}, the recipe is made for larger ones ({usual})"

    def few(self) -> Iterator[str]:
        """A note where there are few training images for a class, or many are held out."""
        labels, held_out = self.dataset.train.labels, len(self.validation_index)
        counts = np.bincount(labels[self.train_index], minlength=len(self.classes))
        if counts.min() < FEW:
            yield (
                f"{counts.min():,} training images of class '{self.classes[counts.argmin()]}': few for "
                "random initial weights; --init starts from trained ones"
            )
        if held_out > len(labels) / 2:
            yield (
                f"{held_out:,} of {len(labels):,} images are held out; --set data.validation=0.1 holds out a "
                "tenth"
            )

    def training_loader(self, where: Placement, **options: Any) -> Loader:
        """Augmented batches of the training images (`options` as of `Loader`)."""
        return self.loader(self.dataset.train, self.train_index, where, **options)

    def validation_loader(self, where: Placement, batch_size: int) -> Loader | None:
        """The images held out, in order; None: there are none."""
        if not len(self.validation_index):
            return None
        return self.loader(self.dataset.train, self.validation_index, where, batch_size=batch_size)

    def test_loader(self, where: Placement, batch_size: int) -> Loader | None:
        """The test images, in order; None: there are none."""
        images = self.dataset.test
        if images is None:
            return None
        return self.loader(images, np.arange(len(images)), where, batch_size=batch_size)

    def loader(self, images: Images, index: np.ndarray, where: Placement, **options: Any) -> Loader:
        """A loader of normalised images; each rank gets its share of every batch."""
        mean, std = self.mean, self.std
        return Loader(images, index, mean=mean, std=std, device=where.device, shard=where.share, **options)


def _read(section: Data, given: Dataset | None = None) -> Dataset:
    """The data set, if it is still the one that the run began with."""
    chosen = section.split
    split = None if chosen is None else FolderSplit(chosen.test, chosen.seed)
    data = given or load(
        section.source, image_size=section.image_size, on_bad_image=section.on_bad_image, split=split
    )
    if len(data.classes) < 2:
        raise InputError(f"{section.source}: has a single class ({data.classes[0]}); two are needed")
    if section.fingerprint not in (None, data.fingerprint):
        raise IntegrityError(
            f"{section.source}: the data has changed since this run began (content "
            f"{data.fingerprint[:12]}, was {section.fingerprint[:12]})"
        )
    return data


def split_note(data: Dataset) -> str:
    """A line about test images that were taken from a folder without any."""
    test, split = len(data.test or ()), data.split
    assert split is not None
    return (
        f"{data.name} has no test folder: {test:,} of its {test + len(data.train):,} images, "
        f"{100 * split.share:g} % of each class, are its test images (data.split.seed={split.seed})"
    )


def image_shape(data: Dataset) -> Shape:
    """(C, H, W) of the images."""
    height, width, channels = data.train.pixels.shape[1:]
    return int(channels), int(height), int(width)


# ---------------------------------------------------------------- images for statistics


def statistics_index(
    images: Images, index: np.ndarray, seed: int, samples: int, batch_size: int
) -> np.ndarray:
    """A fixed seeded subset of `index`, in whole batches where there is more than one."""
    count = min(samples, len(index))
    count -= count % batch_size if count > batch_size else 0
    by_content = index[np.argsort(images.digests[index], kind="stable")]
    drawn = randomness.order(seed, 0, torch.arange(len(by_content)), "subset")[:count]
    chosen: np.ndarray = by_content[drawn.numpy()]
    return chosen


@dataclass(frozen=True)
class TrainingInputs:
    """Inputs of a network from training images: of which data, how many, in batches."""

    source: str
    samples: int
    batches: Iterator[Tensor]


def training_inputs(
    experiment: Experiment, preprocessing: weights.Preprocessing, samples: int, device: torch.device
) -> TrainingInputs:
    """A fixed subset of an experiment's training images, as inputs of a network that is already trained.

    Args:
        experiment: decides which images are held out.
        preprocessing: of the network.
        samples: the largest number of images.
        device: where the inputs go.

    Raises:
        InputError: images of another size or number of channels.
    """
    section, batch_size = experiment.data, experiment.evaluation.batch_size
    data = _read(section)
    given, expected = image_shape(data), (preprocessing.channels, *preprocessing.size)
    if given != expected:
        has, takes = ("x".join(map(str, shape)) for shape in (given, expected))
        raise InputError(f"{section.source}: has images of {has}, the network takes {takes}")
    index, _ = validation_split(data.train, section.validation, experiment.seed)
    chosen = statistics_index(data.train, index, experiment.seed, samples, batch_size)
    loader = Loader(
        data.train, chosen, batch_size=batch_size, mean=preprocessing.mean, std=preprocessing.std,
        device=device, dtype=preprocessing.dtype,
    )  # fmt: skip
    return TrainingInputs(section.source, len(chosen), (batch.inputs for batch in loader))
