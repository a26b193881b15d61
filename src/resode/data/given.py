"""Given data: what a user holds in Python, as a `Dataset` or as the images of one split.

    (images, labels)                              arrays or tensors
    (images, labels, test_images, test_labels)    or ((images, labels), (test_images, test_labels))
    torch_dataset                                 map-style, items (image, label); or (training, test)
    resode.load_data("digits"), "digits", "photos/", "hf://OWNER/NAME"

Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3; where a shape reads both ways, tensors are
channels first and arrays channels last. uint8 is the native form. Floats are kept as they are, in float32:
mean and std then refer to the floats themselves, and 8-bit pixels p stand for p / 255.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from resode.data.image_file import pixels_of
from resode.data.images import Dataset, Images
from resode.data.raw import OnBadImage
from resode.data.sources import load
from resode.errors import InputError
from resode.registry import IN_PYTHON

FORMS = (
    "arrays (images, labels) or (images, labels, test_images, test_labels), a map-style torch Dataset of "
    "(image, label), a loaded data set (resode.load_data), a folder, or a name (`resode list data`)"
)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images of one split with the names of their classes.

    Attributes:
        name: of the data.
        images: the images.
        classes: the names.
        skipped: a line for each image that could not be decoded.
        named: whether the data names its classes; else they are numbers.
    """

    name: str
    images: Images
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    named: bool = True


def dataset_of(data: Any, *, image_size: int | None = None, on_bad_image: OnBadImage = "error") -> Dataset:
    """The data set that a value stands for.

    Args:
        data: arrays, a torch Dataset (read once, in order), a `Dataset`, a name or a folder, as above.
        image_size: of data by name, as `load` takes it.
        on_bad_image: of data by name, as `load` takes it.

    Raises:
        InputError: anything else; arrays that do not fit together, labels that are no class numbers.

    Example:
        >>> dataset_of((np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1])).train.pixels.shape
        (4, 8, 8, 1)
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | PathLike):
        return load(str(data), image_size=image_size, on_bad_image=on_bad_image)
    parts = _read(data)
    found = parts.splits
    if min(int(images.labels.min()) for images in found) == 1:
        raise InputError("labels: begin at 1; number the classes from 0 on (labels - 1)")
    names = _class_names(parts, 1 + max(int(images.labels.max()) for images in found))
    return Dataset.of(parts.name + IN_PYTHON, names, found[0], found[1] if len(found) > 1 else None)


def labelled(data: Any, split: str, classes: Sequence[str] | None) -> Labelled:
    """The images of one split of arrays, a torch Dataset or a `Dataset`.

    Args:
        data: as above, but no name.
        split: "train" or "test" where the data has both; else its only one is taken.
        classes: those of the network, which arrays are labelled in; None: not known.

    Raises:
        InputError: as `dataset_of`; labels that are none of the classes; no such split.
    """
    if isinstance(data, Dataset):
        images = data.train if split == "train" else data.test
        if images is None:
            raise InputError(
                f"{data.name}: has no test images; evaluate on split 'train', or give other data"
            )
        return Labelled(data.name, images, data.classes, data.skipped)
    parts = _read(data)
    images = parts.splits[-1 if split == "test" else 0]
    count = len(classes) if classes is not None else 0
    last = int(images.labels.max())
    if classes is not None and last >= count:
        where = int(images.labels.argmax())
        raise InputError(
            f"label {last} of image {where} is out of range; the network has classes 0 to {count - 1}"
        )
    named = len(parts.classes) > last
    names = parts.classes if named else numbers(count or 1 + last)
    return Labelled(parts.name + IN_PYTHON, images, names, named=named)


@dataclass(frozen=True, eq=False)
class _Parts:
    """What was given: a name for it, one or two splits, and class names if it has some."""

    name: str
    splits: tuple[Images, ...]
    classes: tuple[str, ...] = ()


def _class_names(parts: _Parts, count: int) -> tuple[str, ...]:
    """The names that the data gives, or numbers."""
    return parts.classes if len(parts.classes) >= count else numbers(count)


def numbers(count: int) -> tuple[str, ...]:
    """The names of classes that have none: "0", "1", ..."""
    return tuple(map(str, range(count)))


def _read(data: Any) -> _Parts:
    if isinstance(data, Images):
        return _Parts("images", (data,))
    if _is_map_style(data):
        return _Parts(type(data).__name__, (_from_torch(data, "data"),), _classes(data))
    if isinstance(data, tuple | list) and len(data) in (2, 4):
        first, second = data[0], data[1]
        if len(data) == 2 and _is_map_style(first) and _is_map_style(second):
            splits = _from_torch(first, "training data"), _from_torch(second, "test data")
            return _Parts(type(first).__name__, splits, _classes(first))
        if len(data) == 2 and all(_is_pair(each) for each in data):
            (images, labels), (test_images, test_labels) = data
            pairs = _from_arrays(images, labels), _from_arrays(test_images, test_labels, "test ")
            return _Parts("arrays", pairs)
        tests = [_from_arrays(data[2], data[3], "test ")] if len(data) == 4 else []
        return _Parts("arrays", (_from_arrays(first, second), *tests))
    raise InputError(f"data cannot be {_described(data)}; give {FORMS}")


def _is_pair(value: Any) -> bool:
    """Whether a value is (images, labels), rather than a list of two images or of two labels."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    images, labels = (
        getattr(each, "ndim", 0 if isinstance(each, int | float | str) else 1) for each in value
    )
    return bool(images > labels)


def _described(data: Any) -> str:
    """A value in a few words."""
    if isinstance(data, IterableDataset):
        return "an iterable torch Dataset, which has no order of images"
    if isinstance(data, torch.utils.data.DataLoader):
        return "a DataLoader; its Dataset is loader.dataset"
    if isinstance(data, tuple | list):
        return f"a {type(data).__name__} of {len(data)}"
    if isinstance(data, np.ndarray | Tensor):
        return "images without labels"
    return "None" if data is None else f"of type {type(data).__name__}"


def _is_map_style(data: Any) -> bool:
    """Whether `data[i]` for i below `len(data)` are samples, as torch's map-style Datasets have it."""
    known = (str, bytes, tuple, list, dict, np.ndarray, Tensor, IterableDataset, Images, Dataset)
    return (
        not isinstance(data, known) and hasattr(type(data), "__getitem__") and hasattr(type(data), "__len__")
    )


def _classes(data: Any) -> tuple[str, ...]:
    """The attribute `classes` of a torch Dataset, or of the one that it is a part of."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    names = getattr(data, "classes", ())
    texts = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
    return tuple(names) if texts else ()


# ---------------------------------------------------------------- arrays


def _from_arrays(images: Any, labels: Any, part: str = "") -> Images:
    pixels = pixels_from(images, f"{part}images")
    if not pixels.size:
        raise InputError(f"{part}images: there is none; give at least one image of each class")
    numbers = _labels(labels, f"{part}labels")
    if len(numbers) != len(pixels):
        raise InputError(f"{len(pixels):,} {part}images and {len(numbers):,} {part}labels; give one for each")
    return Images.of(pixels, numbers)


def pixels_from(images: Any, name: str = "images") -> npt.NDArray[Any]:
    """A batch of images as `(N, H, W, C)`, uint8 or float32.

    Args:
        images: an array, a tensor on any device, or nested lists.
        name: for error messages.

    Raises:
        InputError: another shape or dtype, NaN or infinity.
    """
    first = isinstance(images, Tensor)
    array = _array(images, name)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{name}: hold NaN or infinity, or exceed float32; remove these images")
    elif array.dtype != np.uint8:
        raise InputError(
            f"{name}: have dtype {array.dtype}; give uint8 from 0 to 255 (.astype('uint8')) or floats"
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        raise InputError(
            f"{name}: have shape {array.shape}; give (N, H, W), (N, H, W, C) or (N, C, H, W), C = 1 or 3"
        )
    before, after = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    if before and (first or not after):
        array = array.transpose(0, 2, 3, 1)
    elif not after:
        raise InputError(
            f"{name}: have shape {array.shape}, not (N, H, W, C) or (N, C, H, W) with C = 1 or 3 channels"
        )
    return np.ascontiguousarray(array)


def _labels(labels: Any, name: str) -> npt.NDArray[np.int64]:
    array = _array(labels, name)
    if array.ndim != 1:
        column = array.ndim == 2 and array.shape[1] == 1
        hint = ": labels[:, 0]" if column else ": labels.argmax(1) of one-hot rows" if array.ndim == 2 else ""
        raise InputError(f"{name}: have shape {array.shape}; give one class number for each image{hint}")
    if array.dtype.kind not in "iu":
        fix = {"f": ".astype(int)", "b": ".astype(int)", "U": "numpy.unique(..., return_inverse=True)[1]"}
        how = fix.get(array.dtype.kind)
        raise InputError(f"{name}: have dtype {array.dtype}; give whole numbers{f' ({how})' if how else ''}")
    if len(array) and array.min() < 0:
        raise InputError(f"{name}: {array.min()} is no class; give numbers from 0 on")
    if len(array) and array.max() > 10**6:
        raise InputError(f"{name}: {array.max()} is no class; number the classes 0, 1, 2, ...")
    return array.astype(np.int64)


def _array(values: Any, name: str) -> npt.NDArray[Any]:
    if isinstance(values, Tensor):
        if values.is_meta or values.layout != torch.strided:
            kind = "has no values (device meta)" if values.is_meta else "is sparse (.to_dense())"
            raise InputError(f"{name}: the tensor {kind}; give one that holds numbers")
        values = values.detach().cpu()
        return np.asarray(values.float().numpy() if values.is_floating_point() else values.numpy())
    try:
        array = np.asarray(values)
    except ValueError:  # rows of unequal length
        raise InputError(f"{name}: have no common shape; give one array") from None
    if array.dtype.kind not in "biufU":
        kind = f"an array of {array.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise InputError(f"{name}: {kind} is no array of real numbers; give a NumPy array or a tensor")
    return array


# ---------------------------------------------------------------- torch Datasets


def _from_torch(data: Any, name: str) -> Images:
    if type(data) is TensorDataset and len(data.tensors) == 2:
        return _from_arrays(*data.tensors)
    if not len(data):
        raise InputError(f"{name}: {type(data).__name__} is empty; give at least one image of each class")
    images: list[npt.NDArray[Any]] = []
    labels: list[Any] = []
    for position, (image, label) in enumerate(_samples(data, name)):
        pixels = one_image(image, f"{name}: image {position}")
        if images and (pixels.shape, pixels.dtype) != (images[0].shape, images[0].dtype):
            raise InputError(
                f"{name}: image {position} has shape {pixels.shape} and dtype {pixels.dtype}, image 0 "
                f"{images[0].shape} and {images[0].dtype}; give a transform that makes them alike"
            )
        images.append(pixels)
        labels.append(int(label) if isinstance(label, Tensor) and label.ndim == 0 else label)
    return Images.of(np.stack(images), _labels(labels, f"{name}: labels"))


def _samples(data: Any, name: str) -> Iterator[tuple[Any, Any]]:
    for position in range(len(data)):
        sample = data[position]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            what = f"a {type(sample).__name__}" if not isinstance(sample, tuple) else f"{len(sample)} values"
            raise InputError(f"{name}: item {position} is {what}; give a Dataset of pairs (image, label)")
        yield sample[0], sample[1]


def one_image(image: Any, name: str) -> npt.NDArray[Any]:
    """One image as `(H, W, C)`, uint8 or float32.

    Args:
        image: a PIL image, or an array or tensor (H, W), (H, W, C) or (C, H, W).
        name: for error messages.

    Raises:
        InputError: another shape, dtype or type.
    """
    if isinstance(image, Image.Image):
        return pixels_of(image, name)
    if not isinstance(image, np.ndarray | Tensor):
        raise InputError(f"{name} is of type {type(image).__name__}; give a PIL image, an array or a tensor")
    if image.ndim != 2 and not (image.ndim == 3 and {1, 3} & {image.shape[0], image.shape[2]}):
        raise InputError(
            f"{name} has shape {tuple(image.shape)}; give (H, W), (H, W, C) or (C, H, W), C = 1 or 3"
        )
    pixels: npt.NDArray[Any] = pixels_from(image[None], name)[0]
    return pixels
