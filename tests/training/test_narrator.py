"""The narrator: a line an epoch everywhere, a bar where a line can be drawn again."""

import importlib.util
import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

import resode
from resode.training import Narrator
from resode.training.launch import train
from resode.training.narrator import shows_bars


def test_a_file_gets_the_table_of_epochs(tiny, tmp_path):
    text = io.StringIO()
    train(None, tiny, out=tmp_path / "run", callback=Narrator(Console(file=text, width=40)))
    lines = text.getvalue().splitlines()
    assert "digits_resnet8" in lines[1]
    assert lines[2].split()[:2] == ["epoch", "lr"]
    assert [line.split()[0] for line in lines[3:]] == ["1", "2"]


def test_a_terminal_gets_a_bar_as_well(tiny, tmp_path):
    text = io.StringIO()
    narrator = Narrator(Console(file=text, width=100, force_terminal=True))
    train(None, tiny, out=tmp_path / "run", callback=narrator)
    narrator.close()
    assert "epoch 2/2" in text.getvalue()
    assert "\x1b[" in text.getvalue()


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_gets_a_bar_if_it_can_show_one(monkeypatch, widgets):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    assert shows_bars(Console(force_jupyter=True)) == widgets


@pytest.mark.parametrize("progress", [True, False])
def test_training_from_python_speaks_on_stderr_unless_told_not_to(tiny, tmp_path, capfd, progress):
    result = resode.train(tiny, out=tmp_path / "run", progress=progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert bool(err) == progress
    assert f"test error {result.test_error:.2f} %" in err or not progress


def test_a_notebook_shows_a_result_once_in_the_cell_that_trained_it(tiny, tmp_path, monkeypatch, capsys):
    """IPython calls `_ipython_display_` for the value of a cell."""
    shell = SimpleNamespace(execution_count=3)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    printed = resode.train(tiny, out=tmp_path / "printed")
    silent = resode.train(tiny, out=tmp_path / "silent", progress=False)
    capsys.readouterr()
    printed._ipython_display_()
    assert capsys.readouterr().out == ""
    silent._ipython_display_()
    assert capsys.readouterr().out == f"{silent}\n"
    shell.execution_count = 4
    printed._ipython_display_()
    assert capsys.readouterr().out == f"{printed}\n"
