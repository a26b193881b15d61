"""`resode analyze --depth`: tables of 80 columns, JSON, files, and one line for what cannot be measured."""

import json

import pytest

from resode.analysis.depth import Depth


@pytest.fixture
def trained(resode, tmp_path):
    settings = ("epochs=1", "model.widths=[4,4]", "model.states=[0,1]", "precision=fp32")
    words = [word for setting in settings for word in ("--set", setting)]
    answer = resode("train", "quickstart-parabolic", "--out", "run", *words)
    assert answer.code == 0, answer.err
    return tmp_path / "run"


def test_a_run_is_measured_in_80_columns_and_its_report_shows_it(resode, trained, monkeypatch):
    monkeypatch.setattr("resode.cli.console.out.width", 80)
    answer = resode("analyze", trained, "--depth", "--images", "40")
    assert answer.code == 0, answer.err
    assert max(map(len, answer.out.splitlines())) <= 80
    for words in (
        "8 times the steps",
        "by Heun",
        "verdict: ",
        "not smooth in depth: a stage",
        "plain forward",
    ):
        assert words in answer.out
    files = sorted(path.name for path in (trained / "analysis").iterdir())
    assert files == ["depth.html", "depth.json"]
    found = Depth.from_record((trained / "analysis/depth.json").read_bytes(), "depth.json")
    assert (found.images, found.of, found.data) == (40, 360, "digits")
    assert resode("report", trained).code == 0
    assert "Is it a differential equation?" in (trained / "report.html").read_text()


def test_json_has_the_stated_keys(resode, trained):
    answer = resode("analyze", trained, "--depth", "--images", "10", "--json", "--out", "out")
    record = json.loads(answer.out)
    assert isinstance(record["depth"]["verdict"], str)
    assert [set(r) >= {"factor", "error_kept", "error_new"} for r in record["depth"]["refinement"]] == [
        True
    ] * 4
    assert {"observed_order", "distance"} <= set(record["depth"]["stages"][0])
    assert record["files"] == ["out/depth.json", "out/depth.html"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--depth", "--pde"), "--depth: is measured by itself; run it without --pde and --twist"),
        (("--images", "5"), "--images: needs --depth"),
        (("--data", "digits"), "--data: needs --depth"),
    ],
)
def test_options_that_exclude_each_other(resode, words, message):
    answer = resode("analyze", "digits_resnet8", *words)
    assert answer.code == 2
    assert answer.lines == [answer.lines[0]]
    assert message in answer.lines[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "no such run, checkpoint or file"),
        ("dynamicblocks", "is a model without trained weights"),
    ],
)
def test_what_cannot_be_measured_is_named_in_one_line(resode, path, message):
    answer = resode("analyze", path, "--depth", "--data", "digits")
    assert answer.code == 2
    assert len(answer.lines) == 1
    assert message in answer.lines[0]
