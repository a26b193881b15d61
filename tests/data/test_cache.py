import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

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


def test_the_second_load_decodes_nothing_and_maps_the_memory(class_folder, decoded):
    first, second = load(str(class_folder)), load(str(class_folder))
    assert len(decoded) == 8
    for data in (first, second):
        assert isinstance(data.train.pixels, np.memmap)
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


@pytest.mark.parametrize("name", ["train_pixels.npy", "train_labels.npy", "test_digests.npy", "entry.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_entry_is_rebuilt(class_folder, decoded, name, damage):
    fingerprint = load(str(class_folder)).fingerprint
    path = entries()[0] / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-2])
    else:
        content[len(content) // 2 if name == "entry.json" else -1] ^= 255
        path.write_bytes(content)
    assert load(str(class_folder)).fingerprint == fingerprint
    assert len(decoded) == 16
    load(str(class_folder))
    assert len(decoded) == 16
    assert len(entries()) == 1


def test_an_entry_that_lists_nothing_is_rebuilt(class_folder, decoded):
    load(str(class_folder))
    for content in ({"files": {}, "skipped": []}, [], {"files": {"../x": 1}}):
        (entries()[0] / "entry.json").write_text(json.dumps(content))
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

    monkeypatch.setattr(np, "save", full)
    assert np.array_equal(load(str(class_folder)).train.pixels, PIXELS[:6])
    assert entries() == []


def test_many_may_write_at_once(tmp_path):
    images = Images.of(PIXELS, np.arange(8))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.write("key", images, None, ("one",)), range(16)))
    train, test, skipped = cache.read("key")
    assert np.array_equal(train.pixels, PIXELS)
    assert (test, skipped) == (None, ("one",))
    assert [path.name for path in entries()] == ["key"]


def test_abandoned_entries_are_removed_after_a_day(tmp_path):
    for name, age in (("old.tmp", 2), ("new.tmp", 0)):
        (cache.directory() / name).mkdir(parents=True)
        os.utime(cache.directory() / name, (time.time() - age * 86400,) * 2)
    cache.write("key", Images.of(PIXELS, np.arange(8)), None, ())
    assert [path.name for path in entries()] == ["key", "new.tmp"]


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("RESODE_CACHE", "~/own")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "own" / "data"
    monkeypatch.delenv("RESODE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg" / "resode" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.directory() == tmp_path / ".cache" / "resode" / "data"
