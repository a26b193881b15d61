"""A folder of parquet files, as on the model hub: a column of images and a column of labels.

- Files whose name (or whose folder's name) begins with `train` are the training set; `test`, or where there
  is none `validation` or `val`, the test set; others are left alone. One, two or three levels deep.
- The image column is found by its type: a struct with `bytes`, or binary. Of several, `image` or `img`.
- The label column holds integers or text. Of several, the first of `fine_label`, `label`, `labels`, `class`.
- Class names come from the metadata of the `datasets` library where a file has it (ClassLabel); text labels
  are classes sorted by name; otherwise the classes are "0", "1", ...
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

from resode.data.container import Container, Content, Encoded, content_of
from resode.data.images import Labels
from resode.errors import InputError, IntegrityError

IMAGE_NAMES: Final = ("image", "img")
LABEL_NAMES: Final = ("fine_label", "label", "labels", "class")
_ROLES: Final = ("train", "test", "validation", "val")
_PREFIX: Final = re.compile(rf"({'|'.join(_ROLES)})(?![a-z])")
_ROWS: Final = 1024  # images read at a time
P = TypeVar("P", bound=PurePath)


def find(folder: Path) -> list[Path]:
    """The parquet files in `folder`, at most three levels deep, hidden ones left out."""
    paths = [path for depth in range(3) for path in folder.glob("*/" * depth + "*.parquet")]
    return sorted(
        path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def roles(where: str, files: Sequence[P]) -> tuple[list[P], list[P]]:
    """Sort files into training and test files by their names.

    Raises:
        InputError: no training file, or training files in several folders.
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


def read(where: str, root: Path, train: Sequence[Path], test: Sequence[Path]) -> Container:
    """Open parquet files.

    Args:
        where: how errors call the whole.
        root: the folder that the cache's key counts file names from.
        train: training files, at least one.
        test: test files, possibly none.

    Raises:
        InputError: no image or label column, or several and no telling which; missing labels.
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
    return Container(
        where,
        classes,
        _encoded(train, columns, classes, image),
        _encoded(test, columns, classes, image) if any(columns[path] for path in test) else None,
        lambda: content_of(root, files),
    )


def _role(path: PurePath) -> str | None:
    match = _PREFIX.match(path.name.lower())
    return match[1] if match else path.parent.name if path.parent.name in _ROLES else None


def _subset(path: PurePath) -> str:
    """The folder that a file's data set lies in: its own, or the one above `train/` and `test/`."""
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
    found = [field.name for field in schema if _is_image(field.type)]
    return _only(path, "image", found, [name for name in IMAGE_NAMES if name in found], schema)


def _label_column(path: Path, schema: Any) -> str:
    found = [field.name for field in schema if _is_label(field.type)]
    return _only(path, "label", found, [name for name in LABEL_NAMES if name in found], schema)


def _only(path: Path, what: str, found: list[str], preferred: list[str], schema: Any) -> str:
    if preferred:
        return preferred[0]
    if len(found) == 1:
        return found[0]
    if not found:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise InputError(f"{path} has no {what} column of a known type; it has {columns}")
    raise InputError(f"{path}: any of {', '.join(found)} could be the {what} column; call it '{what}'")


def _labels(path: Path, column: str) -> list[int] | list[str]:
    try:
        values = pq.read_table(path, columns=[column]).column(column)
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(path, error) from error
    if values.null_count:
        raise InputError(f"{path}: {values.null_count} rows have no '{column}'; remove them")
    found: list[int] | list[str] = values.to_pylist()
    return found


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel column, which the `datasets` library writes into the schema's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (TypeError, KeyError, ValueError):
        return None
    return tuple(names) if names and all(isinstance(name, str) for name in names) else None


def _numbered(labels: list[int] | list[str], classes: tuple[str, ...] | None, path: Path) -> Labels:
    if not labels or not isinstance(labels[0], str):
        try:
            return np.array(labels, dtype=np.int64)
        except OverflowError as error:
            raise InputError(f"{path}: label {max(labels)} is out of range") from error
    known = {name: number for number, name in enumerate(classes or ())}
    for text in labels:
        if text not in known:
            raise InputError(f"{path}: class '{text}' is not among the training images")
    return np.array([known[str(text)] for text in labels], dtype=np.int64)


def _encoded(
    files: Sequence[Path],
    columns: dict[Path, list[int] | list[str]],
    classes: tuple[str, ...] | None,
    image: str,
) -> Encoded:
    labels = np.concatenate([_numbered(columns[path], classes, path) for path in files])

    def images() -> Iterator[tuple[str, Content]]:
        for path in files:
            for row, content in enumerate(_contents(path, image)):
                yield f"{path} row {row}", content

    return Encoded(labels, images)


def _contents(path: Path, column: str) -> Iterator[bytes]:
    """The image files of one parquet file; a row without bytes is an empty file."""
    try:
        for batch in pq.ParquetFile(path).iter_batches(_ROWS, columns=[column]):
            values = batch.column(0)
            values = pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
            for content in values.to_pylist():
                yield content or b""
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(path, error) from error
