"""Checkpoints are written atomically; a reader takes the newest intact one."""

import os

import pytest
import torch

from resode.errors import InputError, IntegrityError, ResourceError
from resode.training.records import checkpoints


def put(root, iteration, keep=2, save=lambda path: path.write_bytes(b"weights")):
    return checkpoints.write(root, iteration, save, {"a/b": torch.ones(3)}, {"epoch": iteration}, keep)


def test_the_newest_comes_back_and_only_some_are_kept(tmp_path):
    for iteration in (0, 9, 10, 100):
        put(tmp_path, iteration)
    assert [p.name for p in checkpoints.stored(tmp_path)] == ["10", "100"]
    checkpoint, damaged = checkpoints.newest(tmp_path)
    assert checkpoint.iteration == 100
    assert checkpoint.state == {"epoch": 100}
    assert torch.equal(checkpoint.training["a/b"], torch.ones(3))
    assert damaged == []


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, name, harm):
    put(tmp_path, 1)
    file = put(tmp_path, 2) / name
    content = file.read_bytes()
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if harm == "cut" else bytes([content[0] ^ 1]) + content[1:])
    checkpoint, damaged = checkpoints.newest(tmp_path)
    assert checkpoint.iteration == 1
    assert str(file.parent) in damaged[0]


def test_if_all_are_damaged_that_is_an_integrity_error(tmp_path):
    (put(tmp_path, 1) / "state.json").write_text("{}")
    with pytest.raises(IntegrityError, match="all checkpoints are damaged"):
        checkpoints.newest(tmp_path)


def test_a_failed_write_leaves_the_last_good_one(tmp_path):
    put(tmp_path, 1)

    def fail(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left"):
        put(tmp_path, 2, save=fail)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert checkpoints.newest(tmp_path)[0].iteration == 1


def test_the_same_iteration_can_be_written_again(tmp_path):
    put(tmp_path, 3)
    put(tmp_path, 3, save=lambda path: path.write_bytes(b"newer"))
    assert checkpoints.newest(tmp_path)[0].model.read_bytes() == b"newer"


def test_no_checkpoint_is_no_error(tmp_path):
    assert checkpoints.newest(tmp_path / "none") == (None, [])


def unnamed(root, iteration, kind, weights=b"weights"):
    """A whole checkpoint under the name that it has while it is written or replaced."""
    put(root, iteration, save=lambda path: path.write_bytes(weights))
    return (root / str(iteration)).rename(root / f".{iteration}.{kind}")


def test_a_whole_checkpoint_without_its_name_is_found_and_named(tmp_path):
    unnamed(tmp_path, 2, "new", b"newer")
    assert checkpoints.newest(tmp_path)[0].iteration == 2
    put(tmp_path / "other", 2).rename(tmp_path / ".2.old")  # killed between two renames
    checkpoints.recover(tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name != "other"] == ["2"]
    assert checkpoints.newest(tmp_path)[0].model.read_bytes() == b"newer"


def test_the_old_one_is_kept_where_the_new_one_is_half_written(tmp_path):
    unnamed(tmp_path, 2, "old", b"older")
    (tmp_path / ".2.new").mkdir()
    (tmp_path / ".2.new" / "model.safetensors").write_bytes(b"half")
    checkpoint, damaged = checkpoints.newest(tmp_path)
    assert (checkpoint.iteration, damaged) == (2, [])
    checkpoints.recover(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["2"]
    assert checkpoints.newest(tmp_path)[0].model.read_bytes() == b"older"


def test_leftovers_go_where_the_named_one_is_there(tmp_path):
    put(tmp_path, 1)
    (tmp_path / ".0.old").mkdir()
    (tmp_path / ".1.new").mkdir()
    checkpoints.recover(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_files_have_the_mode_that_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        folder = put(tmp_path, 1)
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()}
    assert modes == dict.fromkeys(checkpoints.FILES, "0o640")


def test_a_newer_format_asks_for_a_newer_version(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 7)
    put(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="has format 7, this resode reads 1: upgrade resode"):
        checkpoints.newest(tmp_path)
