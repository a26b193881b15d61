"""Parquet files as on the Hugging Face hub: a column of images and a column of labels.

- Files whose name (or whose folder's name) begins with `train` are the training set; `test`, or without it
  `validation` or `val`, the test set; other files are ignored. One, two or three levels deep.
- The image column is found by its type: a struct with `bytes`, or binary. Among several, `image` or `img`.
- The label column holds integers or text. Among several, the first of `fine_label`, `label`, `labels`,
  `class`.
- Class names come from the metadata of the `datasets` library (ClassLabel) if a file has it; text labels are
  classes sorted by name; otherwise the classes are "0", "1", ... Files whose lists of names differ in order
  are mapped by name to that of the first one; other lists are refused.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resode.data.images import Labels
from resode.data.raw import Content, RawDataset, RawSplit, content_key
from resode.errors import InputError, IntegrityError

IMAGE_NAMES: Final = ("image", "img")
LABEL_NAMES: Final = ("fine_label", "label", "labels", "class")
_ROLES: Final = ("train", "test", "validation", "val")
_PREFIX: Final = re.compile(rf"({'|'.join(_ROLES)})(?![a-z])")
_ROWS: Final = 1024  # images read at a time
P = TypeVar("P", bound=PurePath)


def find(folder: Path) -> list[Path]:
    """The parquet files in `folder`, at most three levels deep, without hidden ones."""
    paths = [path for depth in range(3) for path in folder.glob("*/" * depth + "*.parquet")]
    return sorted(
        path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def roles(where: str, files: Sequence[P]) -> tuple[list[P], list[P]]:
    """Split files into training and test files by their names.

    Raises:
        InputError: no training file, or training files of several data sets.
    """
    by_role: dict[str | None, list[P]] = {}
    for path in files:
        by_role.setdefault(_role(path), []).append(path)
    train = by_role.get("train", [])
    if not train:
        names = ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")
        raise InputError(f"{where} has no training file ({names}); name it train*.parquet")
    folders = sorted({_subset(path) for path in train})
    if len(folders) > 1:
        raise InputError(f"{where} holds several data sets ({', '.join(folders)}); name one of these folders")
    for role in _ROLES[1:]:
        if test := [path for path in by_role.get(role, []) if _subset(path) == folders[0]]:
            return sorted(train), sorted(test)
    return sorted(train), []


def read(where: str, root: Path, train: Sequence[Path], test: Sequence[Path]) -> RawDataset:
    """Open parquet files.

    Args:
        where: name of the data set in error messages.
        root: folder to which the file names in the cache key are relative.
        train: training files, at least one.
        test: test files, may be empty.

    Raises:
        InputError: no image or label column, or several without a preferred name; missing labels.
        IntegrityError: a corrupt file.
    """
    files = [*train, *test]
    schemas = {path: _schema(path) for path in files}
    image, label = _image_column(train[0], schemas[train[0]]), _label_column(train[0], schemas[train[0]])
    for path, schema in schemas.items():
        if not {image, label} <= set(schema.names):
            raise InputError(f"{path} lacks column '{image}' or '{label}'; it has {', '.join(schema.names)}")
    columns = {path: _labels(path, label) for path in files}
    classes = _class_names(schemas[train[0]], label)
    if not pa.types.is_integer(schemas[train[0]].field(label).type):
        classes = tuple(sorted({str(text) for path in train for text in columns[path]}))
    elif classes is not None:
        for path in files:
            columns[path] = _in_order(path, columns[path], _class_names(schemas[path], label), classes)
    return RawDataset(
        where,
        classes,
        _split(train, columns, classes, image),
        _split(test, columns, classes, image) if any(columns[path] for path in test) else None,
        lambda: content_key(root, files),
    )


def _role(path: PurePath) -> str | None:
    match = _PREFIX.match(path.name.lower())
    return match[1] if match else path.parent.name if path.parent.name in _ROLES else None


def _subset(path: PurePath) -> str:
    """The folder of a file's data set: the file's own, or the one above `train/` and `test/`."""
    return str(path.parent if _PREFIX.match(path.name.lower()) else path.parent.parent)


def _corrupt(path: Path, error: Exception) -> IntegrityError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return IntegrityError(f"{path}: truncated or corrupt parquet file ({reason[:120]})")


def _schema(path: Path) -> Any:
    try:
        return pq.read_schema(path)
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(path, error) from error


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _image_column(path: Path, schema: Any) -> str:
    names = [field.name for field in schema if _is_image(field.type)]
    return _choose(path, "image", names, IMAGE_NAMES, schema)


def _label_column(path: Path, schema: Any) -> str:
    names = [field.name for field in schema if _is_label(field.type)]
    return _choose(path, "label", names, LABEL_NAMES, schema)


def _choose(path: Path, what: str, names: list[str], preferred: Sequence[str], schema: Any) -> str:
    """The first preferred name, or the only one."""
    if best := [name for name in preferred if name in names]:
        return best[0]
    if len(names) == 1:
        return names[0]
    if not names:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise InputError(f"{path} has no {what} column of a known type; it has {columns}")
    raise InputError(f"{path}: any of {', '.join(names)} could be the {what} column; rename it to '{what}'")


def _labels(path: Path, column: str) -> list[int] | list[str]:
    try:
        values = pq.read_table(path, columns=[column]).column(column)
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(path, error) from error
    if values.null_count:
        raise InputError(f"{path}: {values.null_count} rows have no '{column}'; remove them")
    labels: list[int] | list[str] = values.to_pylist()
    return labels


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Names of a ClassLabel column, which the `datasets` library writes into the schema's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (TypeError, KeyError, ValueError):
        return None
    return tuple(names) if names and all(isinstance(name, str) for name in names) else None


def _in_order(
    path: Path, labels: list[int] | list[str], own: tuple[str, ...] | None, classes: tuple[str, ...]
) -> list[int] | list[str]:
    """The labels of a file by the class list of the data set, where its own list has another order."""
    if own in (None, classes) or (labels and isinstance(labels[0], str)):
        return labels
    assert own is not None
    if other := [name for name in own if name not in classes]:
        raise InputError(
            f"{path}: its class list differs from that of the first file ('{other[0]}' is none of its "
            f"{len(classes)} classes); the files belong to different data sets"
        )
    if wrong := [label for label in labels if not 0 <= int(label) < len(own)]:
        raise InputError(
            f"{path}: label {wrong[0]} is out of range; its {len(own)} classes are 0 to {len(own) - 1}"
        )
    return [classes.index(own[int(label)]) for label in labels]


def _integer_labels(labels: list[int] | list[str], classes: tuple[str, ...] | None, path: Path) -> Labels:
    if not labels or not isinstance(labels[0], str):
        try:
            return np.array(labels, dtype=np.int64)
        except OverflowError as error:
            raise InputError(f"{path}: label {max(labels)} is out of range") from error
    label_of = {name: label for label, name in enumerate(classes or ())}
    for text in labels:
        if text not in label_of:
            raise InputError(f"{path}: class '{text}' is not among the training images")
    return np.array([label_of[str(text)] for text in labels], dtype=np.int64)


def _split(
    files: Sequence[Path],
    columns: dict[Path, list[int] | list[str]],
    classes: tuple[str, ...] | None,
    image: str,
) -> RawSplit:
    labels = np.concatenate([_integer_labels(columns[path], classes, path) for path in files])

    def images() -> Iterator[tuple[str, Content]]:
        for path in files:
            for row, content in enumerate(_contents(path, image)):
                yield f"{path} row {row}", content

    return RawSplit(labels, images)


def _contents(path: Path, column: str) -> Iterator[bytes]:
    """Yield the image bytes of each row; a row without bytes yields an empty file."""
    try:
        for batch in pq.ParquetFile(path).iter_batches(_ROWS, columns=[column]):
            values = batch.column(0)
            values = pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
            for content in values.to_pylist():
                yield content or b""
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(path, error) from error
