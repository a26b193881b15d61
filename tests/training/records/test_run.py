"""A run directory is held by one process at a time."""

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
