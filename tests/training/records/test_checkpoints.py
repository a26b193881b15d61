"""Checkpoints are written atomically; a reader takes the newest intact one."""

import pytest
import torch

from resode.errors import IntegrityError, ResourceError
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
