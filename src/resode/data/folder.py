"""Images in folders: `train/<class>/...`, with the test images in `test/<class>/...` or `val/<class>/...`.

The classes are the folders of `train`, sorted by name as text; a class folder is searched to any depth.
Names that begin with a dot are ignored; every other file counts as an image. `val` is the test set only
where there is no `test`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from resode.data.container import Container, Content, Encoded, content_of
from resode.errors import InputError, nearest

TEST_FOLDERS: Final = ("test", "val", "validation")


def find(folder: Path) -> bool:
    """Does `folder` hold a `train` folder?"""
    return (folder / "train").is_dir()


def read(folder: Path) -> Container:
    """Open a folder that `find` approved.

    Raises:
        InputError: no class folder, images outside of the class folders, an empty class, a test class
            that `train` does not have.
    """
    train = folder / "train"
    classes = tuple(path.name for path in _class_folders(train))
    files = _files(train, classes)
    for name, found in files.items():
        if not found:
            raise InputError(f"{train / name} holds no image; add some or remove the folder")
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if test is None:
        _refuse_misspelt(folder)
    test_files = _test_files(test, classes) if test else {}
    listed = [path for group in (files, test_files) for found in group.values() for path in found]
    return Container(
        str(folder),
        classes,
        _encoded(files, classes),
        _encoded(test_files, classes) if any(test_files.values()) else None,
        lambda: content_of(folder, listed),
    )


def _refuse_misspelt(folder: Path) -> None:
    """A folder beside `train` that looks like a test folder with a mistake in its name."""
    for beside in _visible(folder):
        meant = nearest(beside.name.lower(), TEST_FOLDERS)
        if beside.is_dir() and meant:
            raise InputError(f"{beside} is no folder of test images{meant} (or name it quite differently)")


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_folders(folder: Path) -> list[Path]:
    inside = _visible(folder)
    loose = [path for path in inside if not path.is_dir()]
    if loose:
        raise InputError(
            f"{loose[0]} lies outside of a class folder; put each image into {folder}/<class>/"
            + (f" ({len(loose)} such files)" if len(loose) > 1 else "")
        )
    if not inside:
        raise InputError(f"{folder} has no class folder; put the images into {folder}/<class>/")
    return inside


def _files(folder: Path, classes: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files of each class that has a folder, at any depth, sorted."""
    found: dict[str, list[Path]] = {}
    for name in classes:
        if (folder / name).is_dir():
            paths = sorted((folder / name).rglob("*"))
            found[name] = [path for path in paths if path.is_file() and not _hidden(path, folder)]
    return found


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _test_files(folder: Path, classes: tuple[str, ...]) -> dict[str, list[Path]]:
    for path in _class_folders(folder):
        if path.name not in classes:
            raise InputError(f"{path} is a class that train/ does not have{nearest(path.name, classes)}")
    return _files(folder, classes)


def _encoded(files: dict[str, list[Path]], classes: tuple[str, ...]) -> Encoded:
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, ())]

    def images() -> Iterator[tuple[str, Content]]:
        for name in classes:
            for path in files.get(name, ()):
                yield str(path), path

    return Encoded(np.array(labels, dtype=np.int64), images)
