"""Reader of `cifar-10-batches-py` and `cifar-100-python` as their authors published them.

Each file is a pickle of a dictionary with `data` (N, 3072) uint8, channel by channel, and `labels` or
`fine_labels`. Unpickling executes code, so a restricted unpickler reads them: the few callables that such a
file needs (array, dtype, text encoding) are replaced by inert placeholders, and any other name is refused
before anything runs. The file never constructs an object of NumPy or of any other module.
"""

import io
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from resode.data.images import Labels, Pixels
from resode.data.raw import Content, RawDataset, RawSplit, content_key
from resode.errors import InputError, IntegrityError

MAX_FILE_BYTES: Final = 1 << 30  # the largest published file has 155 MB


@dataclass(frozen=True)
class _Layout:
    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    meta: str
    names: str


LAYOUTS: Final = (
    _Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        "labels",
        "batches.meta",
        "label_names",
    ),
    _Layout("cifar-100-python", ("train",), "test", "fine_labels", "meta", "fine_label_names"),
)


def find(folder: Path) -> tuple[Path, ...]:
    """The CIFAR folders among `folder` and its direct children."""
    candidates = (folder, *(folder / layout.folder for layout in LAYOUTS))
    return tuple(candidate for candidate in candidates if _layout(candidate))


def read(folder: Path) -> RawDataset:
    """Open a folder that `find` returned.

    Raises:
        InputError: a file is missing or has the wrong shape.
        IntegrityError: a file is corrupt or hostile.
    """
    layout = _layout(folder)
    assert layout is not None
    files = [folder / name for name in (*layout.train, layout.test)]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}; unpack the archive again")
    *train, test = [_batch(path, layout.labels) for path in files]
    meta = folder / layout.meta
    return RawDataset(
        str(folder),
        _names(meta, layout.names) if meta.is_file() else None,
        _split(train),
        _split([test]),
        lambda: content_key(folder, [*files, *([meta] if meta.is_file() else [])]),
    )


@dataclass(frozen=True, eq=False)
class _Batch:
    name: str
    pixels: Pixels
    labels: Labels


def _layout(folder: Path) -> _Layout | None:
    for layout in LAYOUTS:
        present = [(folder / name).is_file() for name in (layout.train[0], layout.test, layout.meta)]
        if sum(present) >= 2 or (folder.name == layout.folder and folder.is_dir()):
            return layout
    return None


def _split(batches: list[_Batch]) -> RawSplit:
    def images() -> Iterator[tuple[str, Content]]:
        for batch in batches:
            for row, pixels in enumerate(batch.pixels):
                yield f"{batch.name} row {row}", pixels

    return RawSplit(np.concatenate([batch.labels for batch in batches]), images)


def _batch(path: Path, key: str) -> _Batch:
    content = _unpickle(path)
    data, labels = content.get("data"), content.get(key)
    if not isinstance(data, _ArrayPlaceholder) or labels is None:
        raise InputError(f"{path} has no 'data' array or no '{key}'; it holds {sorted(map(str, content))}")
    pixels = data.array(path)
    integers = labels.array(path) if isinstance(labels, _ArrayPlaceholder) else _integers(labels, path)
    if pixels.dtype != np.uint8 or pixels.shape != (len(integers), 3072) or integers.ndim != 1:
        raise InputError(
            f"{path} holds data {pixels.shape} of {pixels.dtype} and labels {integers.shape}; "
            "expected uint8 (N, 3072) and N labels"
        )
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return _Batch(str(path), images, integers.astype(np.int64))


def _integers(labels: object, path: Path) -> Labels:
    if isinstance(labels, list):
        plain = [
            int(label.array(path)) if isinstance(label, _ArrayPlaceholder) else label for label in labels
        ]
        if all(type(label) is int and abs(label) < 2**31 for label in plain):
            return np.array(plain, dtype=np.int64)
    raise InputError(f"{path}: the labels are not a list of integers")


def _names(path: Path, key: str) -> tuple[str, ...]:
    names = _unpickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise InputError(f"{path} has no list '{key}'")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise IntegrityError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes; it is not a CIFAR batch")
        content = _RestrictedUnpickler(path, path.read_bytes()).load()
    except IntegrityError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # a corrupt pickle can raise anything
        raise IntegrityError(f"{path}: truncated or corrupt pickle ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise IntegrityError(
            f"{path} holds {type(content).__name__}, not a dictionary; it is not a CIFAR batch"
        )
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): content[key] for key in content}


class _DtypePlaceholder:
    """Placeholder for `numpy.dtype`: keeps its name and byte order."""

    def __init__(self, name: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode("latin1") if isinstance(order, bytes) else order

    def dtype(self, path: Path) -> np.dtype[Any]:
        kinds = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
        if self.name not in kinds or self.order not in ("<", ">", "|", "="):
            raise IntegrityError(f"{path} holds an array of type {str(self.name)[:20]!r}; expected integers")
        return np.dtype(self.order + str(self.name))


class _ArrayPlaceholder:
    """Placeholder for `numpy.ndarray`: keeps shape, dtype and bytes; `array` checks and reads them."""

    def __init__(self, shape: Any = (), kind: Any = None, fortran: Any = False, raw: Any = b"") -> None:
        self.shape, self.kind, self.fortran, self.raw = shape, kind, fortran, raw

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.fortran, self.raw = state

    def array(self, path: Path) -> np.ndarray[Any, np.dtype[Any]]:
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        sizes = self.shape if isinstance(self.shape, tuple) else (None,)
        if not isinstance(self.kind, _DtypePlaceholder) or not isinstance(raw, bytes | bytearray):
            raise IntegrityError(f"{path} holds a damaged array")
        dtype = self.kind.dtype(path)
        if not all(type(n) is int and n >= 0 for n in sizes) or math.prod(sizes) * dtype.itemsize != len(raw):
            raise IntegrityError(f"{path} holds an array whose shape does not match its {len(raw):,} bytes")
        return np.frombuffer(raw, dtype).reshape(sizes, order="F" if self.fortran else "C")


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers, text and placeholders for arrays; refuses everything else."""

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._path = path
        self._left = len(content)  # encoded text comes from the file, so all of it is no longer than the file

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        """The placeholder for a name written by NumPy 1 or 2; any other name raises `IntegrityError`."""
        old, new = f"{module}.{name}", f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        allowed: dict[str, Callable[..., Any] | str] = {
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._from_buffer,
            "numpy.ndarray": "ndarray",
            "numpy.dtype": self._dtype,
            "_codecs.encode": self._encode,
        }
        if new not in allowed:
            raise IntegrityError(f"{self._path} is a pickle that asks for '{old}'; refused, nothing executed")
        return allowed[new]

    def _reconstruct(self, *_: object) -> _ArrayPlaceholder:
        return _ArrayPlaceholder()

    def _scalar(self, kind: object, raw: object) -> _ArrayPlaceholder:
        return _ArrayPlaceholder((), kind, False, raw)

    def _from_buffer(self, raw: object, kind: object, shape: object, order: object) -> _ArrayPlaceholder:
        return _ArrayPlaceholder(shape, kind, order == "F", raw)

    def _dtype(self, name: object, *_: object) -> _DtypePlaceholder:
        return _DtypePlaceholder(name)

    def _encode(self, text: str, encoding: str | bytes = "latin1") -> bytes:
        self._left -= len(text)
        if encoding not in ("latin1", b"latin1") or self._left < 0:
            raise IntegrityError(f"{self._path} encodes text as no CIFAR batch does; refused")
        return text.encode("latin1")
