import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from resode.data import Images, cache, decode, load
from tests.data.conftest import encoded, random_pixels

PIXELS = random_pixels(8)


@pytest.fixture
def decoded(monkeypatch):
    """How many images have been decoded."""
    names = []

    def spy(content, *, name):
        names.append(name)
        return decode(content, name=name)

    monkeypatch.setattr("resode.data.decoding.decode", spy)
    return names


def entries() -> list:
    return sorted(cache.directory().iterdir()) if cache.directory().is_dir() else []


def test_the_second_load_decodes_nothing_and_maps_the_file(class_folder, decoded):
    first, second = load(str(class_folder)), load(str(class_folder))
    assert len(decoded) == 8
    for data in (first, second):
        assert not data.train.pixels.flags.writeable
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(second.train.digests, first.train.digests)
    assert len(entries()) == 1


def test_the_key_is_the_content(class_folder, tmp_path, decoded):
    load(str(class_folder))
    moved = class_folder.rename(tmp_path / "elsewhere")
    os.utime(moved / "train" / "cat" / "0.png", (0, 0))
    load(str(moved))
    assert len(decoded) == 8
    (moved / "train" / "cat" / "0.png").write_bytes(encoded(PIXELS[7]))
    assert np.array_equal(load(str(moved)).train.pixels[0], PIXELS[7])
    (moved / "train" / "dog").rename(moved / "train" / "bird")
    (moved / "test" / "dog").rename(moved / "test" / "bird")
    assert load(str(moved)).classes == ("bird", "cat")
    assert len(entries()) == 3


def test_options_and_format_are_part_of_the_key(class_folder, decoded, monkeypatch):
    load(str(class_folder))
    assert load(str(class_folder), image_size=4).train.pixels.shape[1] == 4
    load(str(class_folder), on_bad_image="skip")
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    load(str(class_folder))
    assert len(decoded) == 32


def test_pixels_are_memory_mapped():
    """Anonymous memory, that of no file, does not grow by the pixels."""

    def anonymous_bytes() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10

    pixels = np.ones((64, 512, 1024, 1), np.uint8)
    cache.write("key", Images(pixels, np.zeros(64, np.int64), np.zeros(64, np.uint64)), None, ())
    before = anonymous_bytes()
    train, *_ = cache.read("key")
    assert train.pixels[::63].sum() == 2 << 19
    assert anonymous_bytes() - before < pixels.nbytes / 8
    with pytest.raises(ValueError, match="read-only"):
        train.pixels[0] = 0


@pytest.mark.parametrize("damage", ["header", "first byte", "last byte", "cut", "empty"])
def test_a_damaged_file_is_rebuilt(class_folder, decoded, damage):
    fingerprint = load(str(class_folder)).fingerprint
    (path,) = entries()
    content = bytearray(path.read_bytes())
    data = 8 + int.from_bytes(content[:8], "little")
    if damage in ("cut", "empty"):
        content = content[:-2] if damage == "cut" else b""
    else:
        content[{"header": data // 2, "first byte": data, "last byte": -1}[damage]] ^= 255
    path.write_bytes(content)
    assert load(str(class_folder)).fingerprint == fingerprint
    assert len(decoded) == 16
    load(str(class_folder))
    assert len(decoded) == 16
    assert len(entries()) == 1


def test_a_file_of_other_content_is_rebuilt(class_folder, decoded):
    load(str(class_folder))
    (path,) = entries()
    for metadata in (None, {"skipped": "[]", "crc32": "{}"}, {"skipped": "[]", "crc32": "[]"}):
        save_file({"other": np.zeros(3)} if metadata is None else {}, path, metadata)
        load(str(class_folder))
    assert len(decoded) == 32


def test_a_cache_that_cannot_be_written_is_not_needed(class_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path / "file" / "cache"))
    data = load(str(class_folder))
    assert np.array_equal(data.train.pixels, PIXELS[:6])
    assert not data.train.pixels.flags.writeable


def test_a_full_disk_leaves_nothing_behind(class_folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    assert np.array_equal(load(str(class_folder)).train.pixels, PIXELS[:6])
    assert entries() == []


def test_many_may_write_at_once(tmp_path):
    images = Images.of(PIXELS, np.arange(8))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.write("key", images, None, ("one",)), range(16)))
    train, test, skipped = cache.read("key")
    assert np.array_equal(train.pixels, PIXELS)
    assert (test, skipped) == (None, ("one",))
    assert [path.name for path in entries()] == ["key.safetensors"]


def test_temporary_files_of_killed_processes_are_removed_after_a_day():
    cache.directory().mkdir(parents=True)
    for name, age in ((".old.safetensors.0123abcd.tmp", 2), (".new.safetensors.0123abcd.tmp", 0)):
        (cache.directory() / name).touch()
        os.utime(cache.directory() / name, (time.time() - age * 86400,) * 2)
    cache.write("key", Images.of(PIXELS, np.arange(8)), None, ())
    assert [path.name for path in entries()] == [".new.safetensors.0123abcd.tmp", "key.safetensors"]


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("RESODE_CACHE", "~/own")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "own" / "data"
    monkeypatch.delenv("RESODE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg" / "resode" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.directory() == tmp_path / ".cache" / "resode" / "data"
