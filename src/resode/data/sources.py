"""Where images come from: `load` turns a name, a hub address or a folder into a `Dataset`.

1. A registered name (`cifar10`, `digits`, what a plug-in adds). A named data set is looked for in
   `$RESODE_DATA/<name>`, in any of the layouts of 3., and then on the hub, pinned and verified.
2. `hf://OWNER/NAME`, or `hf://OWNER/NAME@COMMIT`: any image-classification data set of the hub; what comes
   back is called by its commit.
3. A folder: parquet files; `cifar-10-batches-py` or `cifar-100-python`, or the folder that holds one;
   `train/<class>/*.png`.

Images are decoded once and then memory-mapped from a cache that is keyed by content (`cache`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from resode.data import batches, cache, digits, folder, hub, parquet
from resode.data.catalogue import KNOWN, Known
from resode.data.container import Container, Content, Encoded, OnBadImage
from resode.data.decoding import decode_container
from resode.data.images import Dataset, Images
from resode.data.warped import warped
from resode.errors import InputError, IntegrityError, nearest
from resode.registry import Registry

sources: Registry[Dataset] = Registry("data set", "data")


def load(data: str, *, image_size: int | None = None, on_bad_image: OnBadImage = "error") -> Dataset:
    """Read a data set.

    Args:
        data: a name of `sources`, `hf://OWNER/NAME`, or a folder.
        image_size: scale and crop every image to this side (`picture.fit`); None keeps (equal) sizes.
        on_bad_image: "error" stops at the first image that cannot be decoded; "skip" leaves such images out
            and lists them in `Dataset.skipped`.

    Returns:
        Decoded images, labels, class names and the content's fingerprint.

    Raises:
        InputError: no such name or folder, no usable layout, a file that is no image, labels or sizes that do
            not fit.
        IntegrityError: a corrupt or hostile file, or not the published content.
        ResourceError: the hub cannot be reached, or memory does not suffice.
    """
    if image_size is not None and (type(image_size) is not int or image_size < 1):
        raise InputError(f"image_size is {image_size!r}; give a number of pixels, at least 1")
    if on_bad_image not in ("error", "skip"):
        raise InputError(f"on_bad_image is '{on_bad_image}'; give 'error' or 'skip'")
    if data in sources.names():
        options = {"image_size": image_size} if image_size is not None else {}
        return sources.build(data, **options, **({"on_bad_image": "skip"} if on_bad_image == "skip" else {}))
    if data.startswith(hub.PREFIX):
        address, pin = hub.find(data)
        return _decoded(address, hub.read(data, pin), None, image_size, on_bad_image)
    path = Path(data).expanduser()
    if not path.is_dir():
        raise _not_found(data, path)
    return _decoded(data, open_folder(path), None, image_size, on_bad_image)


def open_folder(path: Path) -> Container:
    """Open a folder in whichever layout it has.

    Raises:
        InputError: none of the layouts, several data sets, or a folder that cannot be listed.
    """
    try:
        return _opened(path)
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read ({error.strerror})") from error


def _opened(path: Path) -> Container:
    found = batches.find(path)
    if len(found) > 1:
        names = ", ".join(place.name for place in found)
        raise InputError(f"{path} holds several data sets ({names}); name one of them")
    if found:
        return batches.read(found[0])
    if files := parquet.find(path):
        return parquet.read(str(path), path, *parquet.roles(str(path), files))
    if folder.find(path):
        return folder.read(path)
    raise InputError(
        f"{path} holds no data set; expected train*.parquet, cifar-10-batches-py, cifar-100-python "
        "or train/<class>/"
    )


def _not_found(data: str, path: Path) -> InputError:
    if path.exists():
        return InputError(f"'{data}' is a file; give the folder it lies in, unpacked if it is an archive")
    beside = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = nearest(data, sources.names()) or nearest(str(path), beside)
    return InputError(f"no data set and no folder is called '{data}'{near} (names: `resode list data`)")


def _decoded(
    name: str,
    container: Container,
    known: tuple[str, ...] | None,
    image_size: int | None,
    on_bad_image: OnBadImage,
) -> Dataset:
    """Check, decode (or take from the cache) and assemble."""
    classes = known or container.classes or container.numbered_classes()
    container.check(classes)
    options = {"image_size": image_size, "on_bad_image": on_bad_image}
    key = cache.key(container.content(), **options) if container.content else None
    found = cache.read(key) if key else None
    if found is None:
        found = decode_container(container, image_size=image_size, on_bad_image=on_bad_image)
        if key:
            cache.write(key, *found)
            found = cache.read(key) or found
    train, test, skipped = found
    return Dataset.of(name, classes, train, test, skipped)


def _load_known(known: Known, image_size: int | None, on_bad_image: OnBadImage) -> Dataset:
    container = _local(known) or hub.read(known.name, known.pin)
    classes = _classes(known, container)
    if known.fingerprint is None:
        return _decoded(known.name, container, classes, image_size, on_bad_image)
    dataset = _decoded(known.name, container, classes, None, on_bad_image)
    _verify(known, container.where, dataset)
    if image_size in (None, *set(known.shape[1:])):
        return dataset
    return _decoded(known.name, _again(dataset), classes, image_size, "error")


def _local(known: Known) -> Container | None:
    """The data set as found in `$RESODE_DATA`."""
    root = os.environ.get("RESODE_DATA")
    if not root:
        return None
    if not Path(root).expanduser().is_dir():
        raise InputError(f"RESODE_DATA is '{root}', which is no folder; correct or unset it")
    places = [Path(root).expanduser() / name for name in (known.name, known.folder) if name]
    return next((open_folder(place) for place in places if place.is_dir()), None)


def _classes(known: Known, container: Container) -> tuple[str, ...]:
    """Our names where they mean the same; the container's own where it has others."""
    own = container.classes
    if own is not None and len(own) != len(known.classes):
        raise InputError(f"{container.where} has {len(own)} classes; {known.name} has {len(known.classes)}")
    same = own is None or [_plain(name) for name in own] == [_plain(name) for name in known.classes]
    return known.classes if own is None or same or known.fingerprint else own


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _verify(known: Known, where: str, dataset: Dataset) -> None:
    """Compare a data set with its pinned fingerprint."""
    if known.fingerprint in (None, dataset.fingerprint):
        return
    sizes = (len(dataset.train), len(dataset.test) if dataset.test else 0)
    expected, shape = (*known.shape[1:], known.shape[0]), dataset.train.pixels.shape[1:]
    if sizes != known.sizes:
        reason = f"it has {sizes} training and test images, not {known.sizes}"
    elif shape != expected:
        reason = f"its images are (H, W, C) = {shape}, not {expected}"
    else:
        reason = f"some pixels or labels differ (fingerprint {dataset.fingerprint[:12]}...)"
    raise IntegrityError(f"{where} is not {known.name}: {reason}; to use it all the same, give its folder")


def _again(dataset: Dataset) -> Container:
    """A decoded data set as a container, to be resized."""

    def encoded(split: str, images: Images) -> Encoded:
        def contents() -> Iterator[tuple[str, Content]]:
            for position, pixels in enumerate(images.pixels):
                yield f"{dataset.name} {split} image {position}", np.asarray(pixels)

        return Encoded(images.labels, contents)

    return Container(
        dataset.name,
        dataset.classes,
        encoded("training", dataset.train),
        encoded("test", dataset.test) if dataset.test else None,
        lambda: dataset.fingerprint,
    )


def _register(known: Known) -> None:
    @sources.register(known.name, summary=known.summary, shape=known.shape)
    def build(image_size: int | None = None, on_bad_image: OnBadImage = "error") -> Dataset:
        return _load_known(known, image_size, on_bad_image)


for _known in KNOWN:
    _register(_known)


@sources.register("digits", summary="1,797 small digits, shipped (Alpaydin, Kaynak 1998)", shape=(1, 8, 8))
def _digits(image_size: int | None = None, on_bad_image: OnBadImage = "error") -> Dataset:
    dataset = digits.read()
    if image_size in (None, 8):
        return dataset
    train, test, _ = decode_container(_again(dataset), image_size=image_size, on_bad_image=on_bad_image)
    return Dataset.of(dataset.name, dataset.classes, train, test)


@sources.register(
    "cifar10-warped",
    summary="cifar10, its test images rotated by up to 30 degrees and scaled by 0.7 to 1.3",
    shape=(3, 32, 32),
)
def _cifar10_warped(image_size: int | None = None, on_bad_image: OnBadImage = "error") -> Dataset:
    return warped(load("cifar10", image_size=image_size, on_bad_image=on_bad_image), "cifar10-warped")
