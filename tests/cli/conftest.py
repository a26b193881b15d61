"""The command line, run in this process."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import resode as library
from resode.cli import main

TINY = (
    "--set",
    "epochs=2",
    "--set",
    "batch_size=256",
    "--set",
    "model.widths=[4,4,8]",
    "--precision",
    "fp32",
)

SETTINGS = {"epochs": 2, "batch_size": 256, "precision": "fp32"}


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.strip().splitlines()


@pytest.fixture
def resode(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words: str | Path) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return Answer(int(exit_.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def trained(resode, tmp_path) -> Path:
    """A finished run on digits."""
    answer = resode("train", "quickstart", "--out", "run", *TINY)
    assert answer.code == 0, answer.err
    return tmp_path / "run"


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> Path:
    """A finished run of a small ResNet on digits."""
    path = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESODE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        library.train("quickstart", out=path, progress=False, **SETTINGS)
    return path


@pytest.fixture
def run(trained_once, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained_once, tmp_path / "run"))
