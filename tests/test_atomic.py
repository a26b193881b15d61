import os
from pathlib import Path

import pytest

from resode import atomic
from resode.errors import InputError, ResourceError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic.write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left on device"):
        atomic.write(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        atomic.write_text(tmp_path / "file" / "below", "text")


def test_temporaries_are_known_by_their_name(tmp_path):
    left = []

    def killed(temporary):
        left.append(temporary.name)
        (tmp_path / f"copy{temporary.name}").touch()

    atomic.write(tmp_path / "a.json", killed)
    (tmp_path / left[0]).touch()
    assert [p.name for p in atomic.temporaries(tmp_path, ["a.json", "b"])] == left
    os.utime(tmp_path / left[0], (0, 0))  # of long ago
    atomic.write_text(tmp_path / "a.json", "{}")
    assert atomic.temporaries(tmp_path, ["a.json"]) == []


def test_a_folder_for_code_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path))
    folder = atomic.private_folder("code")
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert atomic.private_folder("code").stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)  # made by somebody else before us
    elsewhere = atomic.private_folder("code")
    assert not elsewhere.is_relative_to(tmp_path)
    assert elsewhere.stat().st_mode & 0o777 == 0o700


def test_what_is_no_file_is_refused_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/resode-is-not-here")):
        with pytest.raises(InputError, match=f"{path}: is a device or a pipe; name a file"):
            atomic.write_text(path, "text")
    assert pipe.is_fifo()
    assert not Path("/dev/resode-is-not-here").exists()
