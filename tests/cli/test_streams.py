"""A training goes on to its end, whatever becomes of the stream on which it reports."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from resode.cli import warnings_as_lines
from resode.streams import ErrorConsole, Unfailing

DIGITS = [
    "train", "quickstart", "--epochs", "1", "--set", "model.widths=[4,4,8]", "--set", "precision=fp32"
]  # fmt: skip


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise OSError(28, "No space left on device")


def test_a_broken_stream_is_written_without_an_error(monkeypatch):
    stream = Unfailing(Broken())
    assert stream.write("four") == 4
    stream.flush()
    monkeypatch.setattr(sys, "stderr", Broken())
    ErrorConsole().print("a line")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "full", "broken"])
def test_a_training_whose_stderr_fails_ends_by_itself(tmp_path, kind):
    if kind == "full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    command = [sys.executable, "-m", "resode", *DIGITS, "--out", str(tmp_path / "run")]
    if kind == "closed":
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.close(2))
    elif kind == "full":
        with Path("/dev/full").open("w") as full:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=full)
    else:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        process.stderr.close()
    assert process.wait() == 0
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.filterwarnings("default")
def test_a_warning_of_the_library_is_one_line_on_stderr(capsys):
    with warnings_as_lines():
        warnings.warn("a cached file\nis damaged", stacklevel=1)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "warning: a cached file is damaged\n")
