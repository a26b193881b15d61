"""Image folders: `train/<class>/...`, with test images in `test/<class>/...` or `val/<class>/...`.

A flat folder `<class>/...` is split: some images of each class become the test images (`FolderSplit`), which
on request also happens to a `train` without `test`.

The classes are the subfolders of `train`, sorted by name as text; a class folder is searched recursively, and
links are followed. Names that begin with a dot are ignored; every other file counts as an image, and so does
what cannot be read (`tree`). `val` (or `validation`) is the test set only if there is no `test`. A folder
with test images alone can be evaluated, not trained on.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from resode.data import raw, tree
from resode.data.folder_split import FolderSplit
from resode.data.raw import Content, RawDataset, RawSplit
from resode.errors import InputError, nearest

_content_key = functools.partial(raw.content_key, hash=raw.image_hash)
TEST_FOLDERS: Final = ("test", "val", "validation")
_SPLIT_FOLDERS: Final = frozenset({"train", "training", "testing", "valid", *TEST_FOLDERS})
IMAGE_SUFFIXES: Final = frozenset(
    f".{name}"
    for name in ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
)  # by which a flat folder is recognised; any file in a class folder counts as an image


def find(folder: Path) -> bool:
    """Whether `folder` has a `train` subfolder, or is a flat folder of classes."""
    return folder.is_dir() and ((folder / "train").is_dir() or is_flat(folder))


def is_flat(folder: Path) -> bool:
    """Whether the subfolders are classes: one of them holds image files, and none is called train or test."""
    children = [path for path in _visible(folder) if path.is_dir()]
    named = any(path.name.lower() in _SPLIT_FOLDERS for path in children)
    return not named and any(map(_holds_images, children))


def _holds_images(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # `read` reports a folder that cannot be listed
        return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())
    return False


def test_folder(folder: Path) -> Path | None:
    """The folder of the test images: `test`, or `val` or `validation` where there is no `test`."""
    return next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)


def find_test(folder: Path) -> Path | None:
    """The folder of the test images where there are no others, neither in `train` nor in class folders."""
    return None if os.path.lexists(folder / "train") or not folder.is_dir() else test_folder(folder)


def read(folder: Path, split: FolderSplit | None = None) -> RawDataset:
    """Open a folder for which `find` is true.

    Args:
        folder: the folder.
        split: takes test images from the others; default: of a flat folder only.

    Raises:
        InputError: no class folder, files outside the class folders, an empty class, or a test class that
            `train` does not have.
    """
    flat = not (folder / "train").is_dir()
    train = folder if flat else folder / "train"
    files = _files(_class_folders(train, flat=flat))
    classes = tuple(files)
    if flat:
        return _divided(folder, folder, files, split or FolderSplit())
    _refuse_broken([folder / name for name in TEST_FOLDERS])
    test = test_folder(folder)
    if test is None:
        _refuse_misspelt(folder)
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
        str(folder), classes, _split(files, classes), None, lambda: _content_key(folder, every_file)
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
    )


def _refuse_misspelt(folder: Path) -> None:
    """Raise `InputError` if a folder beside `train` has the misspelt name of a test folder."""
    for sibling in _visible(folder):
        suggestion = nearest(sibling.name.lower(), TEST_FOLDERS)
        if sibling.is_dir() and suggestion:
            raise InputError(f"{sibling} is not a test folder{suggestion} (or choose a less similar name)")


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_folders(folder: Path, *, flat: bool = False) -> list[Path]:
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
    folders = _class_folders(folder)
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
