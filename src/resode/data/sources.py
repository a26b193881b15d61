"""Data sources: `load` turns a name, a hub address or a folder into a `Dataset`.

1. A registered name (`cifar10`, `digits`, or one that a plug-in adds). A pinned data set is searched in
   `$RESODE_DATA/<name>`, in any layout of 3., then on the hub, and verified.
2. `hf://OWNER/NAME` or `hf://OWNER/NAME@COMMIT`: any image-classification data set on the hub. The name of
   the result contains the commit.
3. A folder: parquet files; `cifar-10-batches-py` or `cifar-100-python`, or a folder that holds one;
   `train/<class>/*.png`, or a flat folder `<class>/*.png`, of which some images become test images.

Images are decoded once and then memory-mapped from a cache keyed by content (`cache`).
"""

import dataclasses
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np

from resode.data import cache, cifar, digits, folder, hub, parquet
from resode.data.affine import random_affine
from resode.data.decoding import decode_dataset
from resode.data.folder_split import FolderSplit
from resode.data.images import Dataset, Images
from resode.data.pinned import PINNED_DATASETS, PinnedDataset
from resode.data.raw import Content, OnBadImage, RawDataset, RawSplit
from resode.errors import InputError, IntegrityError, nearest
from resode.registry import IN_PYTHON, Registry

sources: Registry[Dataset] = Registry("data set", "data")


def load(
    data: str | PathLike[str],
    *,
    image_size: int | None = None,
    on_bad_image: OnBadImage = "error",
    split: FolderSplit | None = None,
) -> Dataset:
    """Load a data set.

    Args:
        data: a name in `sources`, `hf://OWNER/NAME`, or a folder.
        image_size: resize and crop every image to this side (`resize_and_crop`); None keeps the images' own
            size, which must be equal.
        on_bad_image: "error" raises at the first image that cannot be decoded; "skip" drops such images and
            lists them in `Dataset.skipped`.
        split: how to choose test images in a folder that has none of its own (default: a fifth of each class
            of a flat folder, none of `train/<class>/`).

    Returns:
        Decoded images, labels, class names and the fingerprint of the content.

    Raises:
        InputError: no such name or folder, no known layout, a file that is not an image, unequal image
            sizes, or labels that do not match the classes.
        IntegrityError: a corrupt or hostile file, or content that differs from the published one.
        ResourceError: the hub cannot be reached, or the images exceed the memory.

    Example:
        >>> load("digits").train.pixels.shape
        (1437, 8, 8, 1)
    """
    if not isinstance(data, str | PathLike):
        raise InputError(f"a data set has a name or a folder, not the type {type(data).__name__}")
    data = str(data)
    if image_size is not None and (type(image_size) is not int or image_size < 1):
        raise InputError(f"image_size is {image_size!r}; give a number of pixels, at least 1")
    if on_bad_image not in ("error", "skip"):
        raise InputError(f"on_bad_image is '{on_bad_image}'; give 'error' or 'skip'")
    if data.endswith(IN_PYTHON):
        raise InputError(
            f"the run was trained on {data}, which it does not store; give them again: data=... in Python, "
            "--data NAME on the command line"
        )
    path = Path(data).expanduser()
    if split is not None and not (data not in sources.names() and folder.find(path)):
        raise InputError(f"{data}: data.split divides a folder <class>/* or train/<class>/*; remove it")
    if data in sources.names():
        options = {"image_size": image_size} if image_size is not None else {}
        return sources.build(data, **options, **({"on_bad_image": "skip"} if on_bad_image == "skip" else {}))
    if data.startswith(hub.PREFIX):
        address, pin = hub.resolve(data)
        return _decode(address, hub.read(data, pin), None, image_size, on_bad_image)
    if not path.is_dir():
        raise _not_found(data, path)
    raw = open_folder(path, split)
    return _decode(data, raw, None, image_size, on_bad_image)


def load_test(
    data: str, *, image_size: int | None = None, on_bad_image: OnBadImage = "error"
) -> Dataset | None:
    """The images of a folder that holds test images alone, as `train` of the result; None for other data.

    Args:
        data: as `load` takes it.
        image_size: as `load` takes it.
        on_bad_image: as `load` takes it.

    Raises:
        InputError: as `load`.
        IntegrityError: as `load`.
    """
    path = Path(data).expanduser()
    if not _is_image_folder(data) or (test := folder.find_test(path)) is None:
        return None
    return _decode(data, folder.read_test(test), None, image_size, on_bad_image)


def test_name(data: str) -> str:
    """What the test images of a data set are called: "validation" where they are those of `val/`."""
    test = folder.test_folder(Path(data).expanduser()) if _is_image_folder(data) else None
    return "test" if test is None or test.name.lower() in folder.TEST else "validation"


def _is_image_folder(data: str) -> bool:
    """Whether data that has a name is neither registered nor on the hub nor a folder of packed images."""
    path = Path(data).expanduser()
    if data in sources.names() or data.startswith(hub.PREFIX) or not path.is_dir():
        return False
    return not cifar.find(path) and not parquet.find(path)


def open_folder(path: Path, split: FolderSplit | None = None) -> RawDataset:
    """Open a folder and detect its layout.

    Raises:
        InputError: no known layout, several data sets, or a folder that cannot be listed.
    """
    try:
        return _open(path, split)
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read ({error.strerror})") from error


def _open(path: Path, split: FolderSplit | None) -> RawDataset:
    cifar_folders = cifar.find(path)
    if len(cifar_folders) > 1:
        names = ", ".join(each.name for each in cifar_folders)
        raise InputError(f"{path} holds several data sets ({names}); name one of them")
    if cifar_folders:
        return cifar.read(cifar_folders[0])
    if files := parquet.find(path):
        return parquet.read(str(path), path, *parquet.roles(str(path), files))
    if folder.find(path):
        return folder.read(path, split)
    raise InputError(f"{path} {folder.why_none(path)}")


def _not_found(data: str, path: Path) -> InputError:
    if path.exists():
        return InputError(f"'{data}' is a file; give its folder, or unpack it if it is an archive")
    siblings = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    suggestion = nearest(data, sources.names()) or nearest(str(path), siblings)
    return InputError(f"no data set or folder is called '{data}'{suggestion} (names: `resode list data`)")


def _decode(
    name: str,
    raw: RawDataset,
    classes: tuple[str, ...] | None,
    image_size: int | None,
    on_bad_image: OnBadImage,
) -> Dataset:
    """Check the labels, decode (or read the cache) and assemble; `classes` override those of `raw`."""
    classes = classes or raw.classes or raw.numbered_classes()
    raw.check(classes)
    options = {"image_size": image_size, "on_bad_image": on_bad_image}
    labels = [split.labels for split in (raw.train, raw.test) if split is not None]
    key = cache.key(raw.content(), classes, labels, **options) if raw.content else None
    decoded = cache.read(key) if key else None
    if decoded is None:
        decoded = decode_dataset(raw, image_size=image_size, on_bad_image=on_bad_image)
        if key:
            cache.write(key, *decoded)
            decoded = cache.read(key) or decoded
    train, test, skipped = decoded
    dataset = Dataset.of(name, classes, train, test, skipped)
    return dataclasses.replace(dataset, split=raw.split, notes=raw.notes)


def _load_pinned(pinned: PinnedDataset, image_size: int | None, on_bad_image: OnBadImage) -> Dataset:
    raw = _open_local(pinned) or hub.read(pinned.name, pinned.pin)
    classes = _class_names(pinned, raw)
    if pinned.fingerprint is None:
        return _decode(pinned.name, raw, classes, image_size, on_bad_image)
    dataset = _decode(pinned.name, raw, classes, None, on_bad_image)
    _verify(pinned, raw.where, dataset)
    if image_size in (None, *set(pinned.shape[1:])):
        return dataset
    return _decode(pinned.name, _undecoded(dataset), classes, image_size, "error")


def _open_local(pinned: PinnedDataset) -> RawDataset | None:
    """The data set in `$RESODE_DATA`, or None."""
    root = os.environ.get("RESODE_DATA")
    if not root:
        return None
    if not Path(root).expanduser().is_dir():
        raise InputError(f"RESODE_DATA is '{root}', which is not a folder; correct or unset it")
    folders = [Path(root).expanduser() / name for name in (pinned.name, pinned.folder) if name]
    return next((open_folder(path) for path in folders if path.is_dir()), None)


def _class_names(pinned: PinnedDataset, raw: RawDataset) -> tuple[str, ...]:
    """The names in the files, or the pinned ones if the files agree, have none, or are verified later.

    Raises:
        InputError: another number of classes.
    """
    own = raw.classes
    if own is not None and len(own) != len(pinned.classes):
        raise InputError(f"{raw.where} has {len(own)} classes; {pinned.name} has {len(pinned.classes)}")
    same = own is None or [_normalised(name) for name in own] == [_normalised(n) for n in pinned.classes]
    return pinned.classes if own is None or same or pinned.fingerprint else own


def _normalised(name: str) -> str:
    """A class name without case, spaces and punctuation."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _verify(pinned: PinnedDataset, where: str, dataset: Dataset) -> None:
    """Raise `IntegrityError` unless the data set has the pinned fingerprint."""
    if pinned.fingerprint in (None, dataset.fingerprint):
        return
    sizes = (len(dataset.train), len(dataset.test) if dataset.test else 0)
    expected, shape = (*pinned.shape[1:], pinned.shape[0]), dataset.train.pixels.shape[1:]
    if sizes != pinned.sizes:
        reason = f"it has {sizes} training and test images, not {pinned.sizes}"
    elif shape != expected:
        reason = f"its images are (H, W, C) = {shape}, not {expected}"
    else:
        reason = f"some pixels or labels differ (fingerprint {dataset.fingerprint[:12]}...)"
    raise IntegrityError(f"{where} is not {pinned.name}: {reason}; to use it anyway, give its folder")


def _undecoded(dataset: Dataset) -> RawDataset:
    """A decoded data set as a raw one, to be resized by `decode_dataset`."""

    def raw_split(split: str, images: Images) -> RawSplit:
        def contents() -> Iterator[tuple[str, Content]]:
            for position, pixels in enumerate(images.pixels):
                yield f"{dataset.name} {split} image {position}", np.asarray(pixels)

        return RawSplit(images.labels, contents)

    return RawDataset(
        dataset.name,
        dataset.classes,
        raw_split("training", dataset.train),
        raw_split("test", dataset.test) if dataset.test else None,
        lambda: dataset.fingerprint,
    )


def _register(pinned: PinnedDataset) -> None:
    @sources.register(pinned.name, summary=pinned.summary, shape=pinned.shape)
    def build(image_size: int | None = None, on_bad_image: OnBadImage = "error") -> Dataset:
        return _load_pinned(pinned, image_size, on_bad_image)


for _pinned in PINNED_DATASETS:
    _register(_pinned)


@sources.register("digits", summary="1,797 small digits, included (Alpaydin, Kaynak 1998)", shape=(1, 8, 8))
def _digits(image_size: int | None = None, on_bad_image: OnBadImage = "error") -> Dataset:
    dataset = digits.read()
    if image_size in (None, 8):
        return dataset
    train, test, _ = decode_dataset(_undecoded(dataset), image_size=image_size, on_bad_image=on_bad_image)
    return Dataset.of(dataset.name, dataset.classes, train, test)


@sources.register(
    "cifar10-warped",
    summary="cifar10, its test images rotated by up to 30 degrees and scaled by 0.7 to 1.3",
    shape=(3, 32, 32),
)
def _cifar10_warped(image_size: int | None = None, on_bad_image: OnBadImage = "error") -> Dataset:
    return random_affine(load("cifar10", image_size=image_size, on_bad_image=on_bad_image), "cifar10-warped")
