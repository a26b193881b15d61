import json
import os
import stat
import time
import types
import zlib
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
    with pytest.warns(
        UserWarning, match=r"\.safetensors: the cached images are damaged; they are decoded again"
    ):
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
        with pytest.warns(UserWarning, match="damaged"):
            load(str(class_folder))
    assert len(decoded) == 32


@pytest.fixture
def checksums(monkeypatch):
    """Number of bytes whose checksum was computed."""
    counted = []

    def spy(data):
        counted.append(len(memoryview(data).cast("B")))
        return zlib.crc32(data)

    monkeypatch.setattr(cache, "zlib", types.SimpleNamespace(crc32=spy))
    return counted


def test_a_file_is_verified_once_and_again_when_it_changes(class_folder, checksums, decoded):
    load(str(class_folder))
    (path,) = entries()
    checksums.clear()
    load(str(class_folder))
    assert checksums == []
    content = path.read_bytes()
    path.write_bytes(content)  # the same bytes at another time
    load(str(class_folder))
    assert sum(checksums) > PIXELS[0].nbytes * 8 // 2
    checksums.clear()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 1))
    with pytest.warns(UserWarning, match="damaged"):
        load(str(class_folder))
    assert len(decoded) == 16


def test_what_was_verified_is_noted_where_nobody_else_writes(class_folder):
    load(str(class_folder))
    (noted,) = cache.directory().parent.glob("verified-*")
    assert stat.S_IMODE(noted.stat().st_mode) == 0o700
    (record,) = noted.iterdir()
    record.write_text("{")  # a damaged record: verified again
    load(str(class_folder))
    assert len(json.loads(record.read_text())) == 1


def test_a_group_may_share_the_cache(class_folder, decoded):
    """Files are as readable as the umask says, and whoever may write to the folder replaces a damaged one."""
    before = os.umask(0o002)
    try:
        load(str(class_folder))
    finally:
        os.umask(before)
    (path,) = entries()
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o775
    path.chmod(0o444)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    path.chmod(0o444)
    with pytest.warns(UserWarning, match="damaged"):
        load(str(class_folder))
    load(str(class_folder))
    assert len(decoded) == 16


def test_what_is_no_file_is_decoded_again(class_folder, decoded):
    load(str(class_folder))
    (path,) = entries()
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    with pytest.warns(UserWarning, match="damaged"):
        load(str(class_folder))
    assert len(decoded) == 16


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_cannot_be_read_is_decoded_again(class_folder, decoded):
    load(str(class_folder))
    (path,) = entries()
    path.chmod(0)
    with pytest.warns(UserWarning, match=r"cannot be read \(Permission denied\)"):
        load(str(class_folder))
    assert len(decoded) == 16


def test_the_label_mapping_is_part_of_the_key():
    labels = np.array([0, 1, 1])
    key = cache.key("content", ("cat", "dog"), [labels])
    assert key == cache.key("content", ["cat", "dog"], [labels.copy()])
    others = [
        cache.key("content", ("dog", "cat"), [labels]),
        cache.key("content", ("cat", "dog"), [1 - labels]),
        cache.key("content", ("cat", "dog"), [labels, labels]),
    ]
    assert len({key, *others}) == 4


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
