"""A run directory is held by one process at a time."""

import errno
import os
import subprocess
import sys

import pytest

from resode.errors import InputError, ResourceError
from resode.training.records.run import Run

HOLD_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from resode.training.records.run import Run
with Run(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(900)
"""


def test_a_directory_is_locked_until_the_block_ends(tmp_path):
    run = Run(tmp_path / "run")
    with run.lock(), pytest.raises(InputError, match="another process is training here"), run.lock():
        pass
    with run.lock():
        assert [file.name for file in run.path.iterdir()] == [".lock"]


def test_a_lock_ends_with_its_process(tmp_path):
    run = Run(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_UNTIL_KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match="another process is training here"), run.lock():
        pass
    holder.kill()
    holder.communicate()
    with run.lock():
        pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file/run: cannot be written"), Run(tmp_path / "file/run").lock():
        pass


def test_what_a_killed_process_left_is_removed(tmp_path):
    run = Run(tmp_path)
    for name in (".metrics.csv.0123abcd.tmp", ".environment.json.abcd_fgh", ".mine.0123abcd.tmp", "notes"):
        (tmp_path / name).write_text("")
    (run.checkpoints / ".3.new").mkdir(parents=True)
    run.clean()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.0123abcd.tmp", "checkpoints", "notes"]
    assert list(run.checkpoints.iterdir()) == []


@pytest.mark.parametrize("again", [False, True])
def test_a_directory_that_was_deleted_meanwhile_is_not_written(tmp_path, again):
    run = Run(tmp_path / "run")
    with run.lock():
        run.check_held()
        run.path.rename(tmp_path / "aside")
        if again:  # another process has started there
            run.path.mkdir()
            (run.path / ".lock").touch()
        with pytest.raises(ResourceError, match="was deleted or moved while training"):
            run.check_held()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_apart(tmp_path, monkeypatch, number):
    def fail(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(ResourceError, match="its file system has no locks"), Run(tmp_path).lock():
        pass
