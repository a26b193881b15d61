"""Settings of the images: where they come from, how they are augmented, and at which size."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from resode.training.recipe.section import BelowOne, DataSource, Inside, Section


class Split(Section):
    """Choice of test images in a folder that has none of its own, by seed and name of each file."""

    test: Inside = 0.2
    """Share of each class that becomes test images, above 0 and below 1."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the choice; runs with other seeds of training keep their test images."""


class Data(Section):
    """The data set, its validation split and its normalisation."""

    source: DataSource = "cifar10"
    """A data set by name (`resode list data`), a folder, or `hf://OWNER/NAME`."""
    validation: NonNegativeInt | BelowOne = 0
    """Training images held out for validation, stratified by class: a number, or a fraction below 1."""
    split: Split | None = None
    """Test images of a folder without its own (default: a fifth of `<class>/*`, none of `train/*`)."""
    image_size: PositiveInt | None = None
    """Side in pixels to which every image is scaled and cropped (default: their own, or the model's)."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What happens with an image that cannot be decoded: `error` stops, `skip` goes on without it."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel of pixels / 255, subtracted from images (default: of the training images)."""
    std: tuple[PositiveFloat, ...] | None = None
    """Standard deviation of each channel, divides images (default: of the training images)."""
    fingerprint: str | None = None
    """SHA-256 of the data's content; a run records it and refuses other content on resume."""


class Augment(Section):
    """Augmentation of training images (`resode.data.Augmentation`)."""

    crop: NonNegativeInt = 0
    """Pixels of padding on each side, from which a window of the image's size is cropped at random."""
    padding: Literal["zeros", "reflect"] = "zeros"
    """What `crop` pads with: black (`zeros`), or the image mirrored at its border (`reflect`)."""
    flip: bool | Literal["alternate"] = False
    """Mirror left and right: at random (`true`), or in every second epoch of each image (`alternate`)."""
    cutout: NonNegativeInt = 0
    """Side in pixels of a square at a random place that is set to the mean; 0 for none."""
    mixup: NonNegativeFloat = 0.0
    """The a of Beta(a, a), the distribution of the weight with which two images are mixed; 0 for none."""


class Sizing(Section):
    """Training on smaller images until some fraction of the training (progressive resizing)."""

    until: Inside
    """Fraction of the training, above 0 and below 1, at which the next size begins, or full size."""
    size: PositiveInt
    """Length in pixels of the images' shorter side."""
