"""Image folders: `train/<class>/...`, with test images in `test/<class>/...` or `val/<class>/...`.

A flat folder `<class>/...` is split: some images of each class become the test images (`FolderSplit`), which
on request also happens to a `train` without `test`.

`train` may be called `training`, `test` `testing`, and `val` `valid` or `validation`, in any case of letters.
The classes are the subfolders of `train`, sorted by name as text; a class folder is searched recursively, and
links are followed. Names that begin with a dot and what systems leave behind are ignored (`tree.ignored`);
every other file counts as an image, and so does what cannot be read (`tree`). `val` is the test set only if
there is no `test`. A folder with test images alone can be evaluated, not trained on.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from resode.data import raw, tree
from resode.data.folder_split import FolderSplit
from resode.data.raw import Content, RawDataset, RawSplit
from resode.errors import InputError, nearest

_content_key = functools.partial(raw.content_key, hash=raw.image_hash)
TRAIN: Final = ("train", "training")
TEST: Final = ("test", "testing")
VALIDATION: Final = ("val", "valid", "validation")
_PARTS: Final = (*TRAIN, *TEST, *VALIDATION)
IMAGE_SUFFIXES: Final = frozenset(
    f".{name}"
    for name in ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
)  # by which a flat folder is recognised; any file in a class folder counts as an image


def find(folder: Path) -> bool:
    """Whether `folder` has a folder of training images, or is a flat folder of classes."""
    return folder.is_dir() and (train_folder(folder) is not None or is_flat(folder))


def is_flat(folder: Path) -> bool:
    """Whether the subfolders are classes: one of them holds image files, and none is called train or test."""
    children = _folders(folder)
    named = any(path.name.lower() in _PARTS for path in children)
    return not named and any(map(_holds_images, children))


def _holds_images(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # `read` reports a folder that cannot be listed
        return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())
    return False


def train_folder(folder: Path) -> Path | None:
    """The folder of the training images: `train` or `training`, in any case of letters."""
    return _part(folder, TRAIN)


def test_folder(folder: Path) -> Path | None:
    """The folder of the test images, in any case of letters.

    `test` or `testing`; where there is neither, `val`, `valid` or `validation`.
    """
    return _part(folder, TEST) or _part(folder, VALIDATION)


def find_test(folder: Path) -> Path | None:
    """The folder of the test images where there are no others, neither in `train` nor in class folders."""
    return test_folder(folder) if folder.is_dir() and train_folder(folder) is None else None


def _part(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder with one of some names.

    Raises:
        InputError: several, or a broken link.
    """
    found = [path for path in _visible(folder) if path.name.lower() in names]
    _refuse_broken(found)
    found = [path for path in found if path.is_dir()]
    if len(found) > 1:
        first, second = (tree.text(path.name) for path in found[:2])
        raise InputError(
            f"{tree.text(folder)} holds {first}/ and {second}/, both names of its {names[0]} images; "
            "merge them, or rename one"
        )
    return found[0] if found else None


def read(folder: Path, split: FolderSplit | None = None) -> RawDataset:
    """Open a folder for which `find` is true.

    Args:
        folder: the folder.
        split: takes test images from the others; default: of a flat folder only.

    Raises:
        InputError: no class folder, files outside the class folders, an empty class, or a test class that
            `train` does not have.
    """
    train = train_folder(folder)
    if train is None:
        files = _files(_class_folders(folder, flat=True))
        return _divided(folder, folder, files, split or FolderSplit())
    classes_beside = any(_holds_images(path) for path in _folders(folder) if path.name.lower() not in _PARTS)
    other = f"if {train.name} is a class, give it another name" if classes_beside else ""
    files = _files(_class_folders(train, otherwise=other))
    test, classes = test_folder(folder), tuple(files)
    if test is None:
        _refuse_misspelt(folder, train)
        if split is not None:
            return _divided(folder, train, files, split)
    elif split is not None:
        raise InputError(f"{folder} has test images of its own, in {test}; remove data.split")
    test_files = _test_files(test, classes) if test else {}
    every_file = [path for split in (files, test_files) for paths in split.values() for path in paths]
    return RawDataset(
        str(folder),
        classes,
        _split(files, classes),
        _split(test_files, classes) if any(test_files.values()) else None,
        lambda: _content_key(folder, every_file),
        notes=tuple(_unused(folder, train, test)),
    )


def read_test(folder: Path) -> RawDataset:
    """Open a folder of test images alone; they are the `train` of the result, as a data set needs one.

    Raises:
        InputError: no class folder, files outside the class folders, or an empty class.
    """
    files = _files(_class_folders(folder))
    every_file = [path for paths in files.values() for path in paths]
    classes = tuple(files)
    return RawDataset(
        str(folder),
        classes,
        _split(files, classes),
        None,
        lambda: _content_key(folder, every_file),
        notes=tuple(_unused(folder)),
    )


def _divided(folder: Path, images: Path, files: dict[str, list[Path]], split: FolderSplit) -> RawDataset:
    """A data set whose test images are taken from `files`, which lie in class folders of `images`."""
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Path]] = {}
    for name, paths in files.items():
        by_name = {path.relative_to(images).as_posix(): path for path in paths}
        chosen = split.chosen(list(by_name))
        train[name] = [path for key, path in by_name.items() if key not in chosen]
        test[name] = [path for key, path in by_name.items() if key in chosen]
    classes, every_file = tuple(files), [path for paths in files.values() for path in paths]
    return RawDataset(
        str(folder),
        classes,
        _split(train, classes),
        _split(test, classes) if any(test.values()) else None,
        lambda: f"{_content_key(folder, every_file)} {split}",
        split,
        tuple(_unused(folder, *(() if images == folder else (images,)))),
    )


def why_none(folder: Path) -> str:
    """What to do with a folder that holds no data set of known layout, in which there may be images."""
    if test := find_test(folder):
        return (
            f"holds test images alone ({tree.text(test.name)}/); training needs train/<class>/, too: rename "
            "the folder of the training images to train, or move all class folders into one called train"
        )
    inner = [tree.text(path) for path in _folders(folder) if find(path)]
    if inner:
        return f"holds no data set itself; give the folder in it: {' or '.join(inner[:3])}"
    return (
        "holds no data set; expected folders of images <class>/ or train/<class>/, train*.parquet, "
        "cifar-10-batches-py or cifar-100-python"
    )


def _unused(folder: Path, *used: Path | None) -> Iterator[str]:
    """A note that names the subfolders which are not read; `used`: the folders of the parts."""
    inside = [folder, *(path for path in used if path is not None)]
    ignored = [
        path.relative_to(folder)
        for place in inside
        for path in sorted(place.iterdir())
        if path.is_dir() and (tree.ignored(path.name) or (place == folder and used and path not in used))
    ]
    if ignored:
        names = ", ".join(f"{tree.text(path)}/" for path in ignored[:5]) + (", ..." if ignored[5:] else "")
        yield f"{tree.text(folder)}: not read: {names}"


def _refuse_misspelt(folder: Path, train: Path) -> None:
    """Raise `InputError` if a folder beside `train` has the misspelt name of a test folder."""
    for sibling in _folders(folder):
        suggestion = nearest(sibling.name.lower(), (*TEST, *VALIDATION))
        if sibling != train and suggestion:
            raise InputError(
                f"{tree.text(sibling)} is not a test folder{suggestion} (rename {tree.text(sibling.name)} to "
                "test, or to a less similar name if it holds no test images)"
            )


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not tree.ignored(path.name))
    except OSError as error:
        raise InputError(f"{tree.text(folder)} cannot be read ({error.strerror})") from error


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _class_folders(folder: Path, *, flat: bool = False, otherwise: str = "") -> list[Path]:
    """The subfolders, one for each class.

    Raises:
        InputError: none, a broken link, or files beside them; `otherwise` is what else may be the fix.
    """
    children = _visible(folder)
    _refuse_broken(children)
    files = [path for path in children if not path.is_dir()]
    if flat:  # beside other things such as a list of the images
        children = [path for path in children if path.is_dir()]
        files = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if files:
        raise InputError(
            f"{tree.text(files[0])} is outside a class folder; put each image into {folder}/<class>/"
            + (f" ({len(files)} such files)" if len(files) > 1 else "")
            + (f"; {otherwise}" if otherwise else "")
        )
    if not children:
        raise InputError(f"{folder} has no class folder; put the images into {folder}/<class>/")
    return children


def _refuse_broken(paths: list[Path]) -> None:
    """Raise `InputError` for a broken link in the place of a folder."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise InputError(
                f"{tree.text(path)} is a broken link, to {tree.text(path.readlink())}; fix or remove it"
            )


def _files(folders: list[Path]) -> dict[str, list[Path]]:
    """The sorted files of each class, at any depth.

    Raises:
        InputError: a class without any.
    """
    files = {tree.text(path.name): tree.files(path) for path in folders}
    if len(files) < len(folders):
        raise InputError(f"{folders[0].parent}: several classes have one name as UTF-8; rename a folder")
    for path in folders:
        if not files[tree.text(path.name)]:
            raise InputError(f"{tree.text(path)} holds no image; add some or remove the folder")
    return files


def _test_files(folder: Path, classes: tuple[str, ...]) -> dict[str, list[Path]]:
    unlabelled = "images without labels are for `resode predict`: rename the folder"
    folders = _class_folders(folder, otherwise=unlabelled)
    for path in folders:
        if tree.text(path.name) not in classes:
            raise InputError(
                f"{tree.text(path)} is a class that train/ does not have{nearest(path.name, classes)}"
            )
    return {tree.text(path.name): tree.files(path) for path in folders}


def _split(files: dict[str, list[Path]], classes: tuple[str, ...]) -> RawSplit:
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, ())]

    def images() -> Iterator[tuple[str, Content]]:
        for name in classes:
            for path in files.get(name, ()):
                yield tree.text(path), path

    return RawSplit(np.array(labels, dtype=np.int64), images)
