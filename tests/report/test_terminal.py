"""The table that the terminal shows."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from resode import report
from resode.errors import InputError

MakeRun = Callable[..., Path]


def printed(run: Path) -> str:
    out = io.StringIO()
    Console(file=out, width=100, color_system="truecolor", force_terminal=True).print(report.table(run))
    return out.getvalue()


def test_a_finished_run(make_run: MakeRun) -> None:
    text = printed(make_run())
    for part in ("he_resnet20 on cifar10", "12.50 %", "8.75 %", "13.00 %", "7 min 01 s", "430.5", "269,722"):
        assert part in text


def test_an_unfinished_run_says_where_it_stands(make_run: MakeRun) -> None:
    text = printed(make_run(summary=None, epochs=2))
    assert "2 of 4" in text
    assert "unfinished" in text
    assert "26.00 %" in text
    assert "test error" not in text


def test_names_are_neither_markup_nor_control_codes(make_run: MakeRun) -> None:
    text = printed(make_run(summary={"model": "[red]x[/red]\x1b[2J\ud800", "published": None}))
    assert "[red]x[/red]" in text
    assert "\x1b[2J" not in text
    assert "\ud800" not in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        report.table(tmp_path)
