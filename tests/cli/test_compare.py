"""`resode compare` on runs as training leaves them."""

import json
import shutil
from pathlib import Path

import pytest

from resode.cli import console, main

RESULTS = Path(__file__).parent.parent.parent / "results"
RUNS = [str(RESULTS / name) for name in ("short-resnet20", "short-resnet20-validation")]


def said(capsys, *words, code=0):
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *words])
    assert (exit_.value.code or 0) == code
    return capsys.readouterr()


def test_runs_of_two_protocols_are_shown_with_a_remark(capsys):
    shown = said(capsys, *RUNS)
    assert "protocols differ in validation split" in shown.err
    assert "test error" in shown.out
    record = json.loads(said(capsys, *RUNS, "--json").out)
    assert len(record["rows"]) == 2
    assert record["rows"][0]["parameters"] == 269_722
    difference = record["rows"][1]["test_error"] - record["rows"][0]["test_error"]
    assert record["rows"][1]["difference"] == pytest.approx(difference)


def test_the_base_is_chosen_by_name(capsys):
    rows = json.loads(said(capsys, *RUNS, "--base", "validation=5000", "--json").out)["rows"]
    assert "5000" in rows[0]["arm"]
    assert rows[0]["difference"] is None
    for base, message in (("short", "more than one arm of that name"), ("none", "no arm of that name")):
        assert message in said(capsys, *RUNS, "--base", base, code=2).err


def test_differences_of_protocol_are_folded_and_listed_on_request(capsys):
    names = [str(RESULTS / name) for name in ("short-resnet20", "fast-resnet20-cpu-0")]
    folded, whole = said(capsys, *names).err, said(capsys, *names, "--differences").err
    assert "protocols differ in epochs, augmentation, image sizes, optimizer" in folded
    assert sum("protocol" in line or "differences" in line for line in folded.splitlines()) == 2
    assert "protocols differ in epochs: 10 (short/resnet20); 22 (fast/resnet20-cpu)" in whole
    assert len(whole.splitlines()) > 5


def test_a_folder_with_a_run_and_its_copy(capsys, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(RESULTS / "short-resnet20", tmp_path / name)
    shown = said(capsys, str(tmp_path))
    assert f"{tmp_path / 'b'}: excluded, the same experiment with the same seed 0" in shown.err
    assert shown.out.count("short/resnet20") == 1


@pytest.mark.parametrize(("columns", "tables"), [(80, 2), (110, 2), (150, 1)])
def test_a_table_fits_the_terminal_and_no_figure_is_broken(capsys, monkeypatch, columns, tables):
    """Where it is too wide what the arms cost is a table of its own."""
    monkeypatch.setattr(console, "out", console.Screen(width=columns))
    names = ("fast-resnet20-cpu-0", "fast-resnet20-cpu-1", "ruthotto2018-second-order")
    out = said(capsys, *(str(RESULTS / name) for name in names)).out
    *rows, _ = out.rstrip().splitlines()  # but for the legend
    assert max(map(len, rows)) <= columns
    assert sum(line.lstrip().startswith("arm ") for line in rows) == tables
    figures = (
        "8.61 \N{PLUS-MINUS SIGN} 0.02 %",
        "[8.41, 8.80]",
        "20.94 %",
        "(one seed)",
        "502,570",
        "36 min 24 s",
    )
    assert all(any(figure in line for line in rows) for figure in figures)


@pytest.mark.parametrize("form", ["markdown", "csv"])
def test_it_is_printed_as_text(capsys, form):
    out = said(capsys, *RUNS, "--as", form).out
    assert out.startswith("| arm |" if form == "markdown" else "arm,n,test_error")


def test_a_folder_without_runs_is_refused(capsys, tmp_path):
    assert "holds no run" in said(capsys, str(tmp_path), code=2).err
    assert "no such directory" in said(capsys, str(tmp_path / "none"), code=2).err
