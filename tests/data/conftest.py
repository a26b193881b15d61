"""Small data sets on disk, and the real one where RESODE_DATA names it."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from resode.data import load
from resode.data.pinned import PINNED_DATASETS, PinnedDataset

REAL = os.environ.get("RESODE_DATA")  # read before `isolated` hides it


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Each test has its own cache and no local data."""
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RESODE_DATA", raising=False)


@pytest.fixture
def cifar10(tmp_path_factory):
    """The real CIFAR-10, decoded once for all tests of the session, and mapped for this one."""
    if not REAL or not (Path(REAL) / "cifar10").is_dir():
        pytest.skip("needs real CIFAR-10: set RESODE_DATA to a folder that holds cifar10/*.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESODE_DATA", REAL)
        patch.setenv("RESODE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return load("cifar10")


def known(name: str) -> PinnedDataset:
    return next(entry for entry in PINNED_DATASETS if entry.name == name)


def random_pixels(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    """One image (H, W, C) as the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, form, **options)
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes], **columns) -> Path:
    """`img` as {bytes, path}, as on the hub, and any other columns."""
    rows = [{"bytes": content, "path": None} for content in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array(rows, kind), **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_images(folder: Path, images: np.ndarray) -> None:
    """0.png, 1.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        (folder / f"{number}.png").write_bytes(encoded(image))


@pytest.fixture
def class_folder(tmp_path) -> Path:
    """Two classes with three training images and one test image each, 8x8 in colour."""
    root, pixels = tmp_path / "pets", random_pixels(8)
    write_images(root / "train" / "cat", pixels[:3])
    write_images(root / "train" / "dog", pixels[3:6])
    write_images(root / "test" / "cat", pixels[6:7])
    write_images(root / "test" / "dog", pixels[7:8])
    return root


@pytest.fixture
def parquet_folder(tmp_path) -> Path:
    """The images of `class_folder`, in another order and container."""
    root, pixels = tmp_path / "parquet", [encoded(image) for image in random_pixels(8)]
    write_parquet(root / "train-0.parquet", [pixels[i] for i in (5, 0)], label=["dog", "cat"])
    write_parquet(
        root / "train-1.parquet", [pixels[i] for i in (1, 4, 3, 2)], label=["cat", "dog", "dog", "cat"]
    )
    write_parquet(root / "test-0.parquet", [pixels[7], pixels[6]], label=["dog", "cat"])
    return root
