"""Runs and weights that were written before files carried hashes: they work, and one line says so."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import resode as library
from resode import atomic
from resode.errors import ResourceError
from resode.training.records.reader import UNSEALED

NEWER = "short/resnet20"  # comes with the package


def unseal(run: Path) -> None:
    """Make a finished run one of an earlier version."""
    file = run / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        card = json.loads(opened.metadata()["resode"])
    card = {key: value for key, value in card.items() if key != "sha256"} | {"format": 1}
    save_file(load_file(file), file, metadata={"resode": json.dumps(card)})
    summary = json.loads((run / "summary.json").read_text())
    kept = {key: value for key, value in summary.items() if key not in ("files", "sha256")}
    (run / "summary.json").write_text(json.dumps(kept))


@pytest.fixture
def earlier(trained):
    unseal(trained)
    return trained


def test_each_command_says_so_once_on_stderr(resode, earlier, tmp_path):
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    commands = (
        ("evaluate", "run"),
        ("evaluate", "run/model.safetensors", "--data", "digits"),
        ("predict", "run", "a.png"),
        ("export", "run", "--out", "exported.safetensors"),
        ("report", "run"),
        ("report", "run/model.safetensors"),
        ("compare", "run", "run"),
    )
    for words in commands:
        answer = resode(*words)
        assert answer.code == 0, answer.err
        assert answer.err.count(UNSEALED) == 1, words
        assert UNSEALED not in answer.out


def test_json_holds_nothing_of_it(resode, earlier):
    for words in (("evaluate", "run", "--json"), ("compare", "run", "--json")):
        answer = resode(*words)
        assert answer.code == 0
        assert "earlier version" not in json.dumps(json.loads(answer.out))


def test_python_warns_where_it_loads(earlier):
    with pytest.warns(UserWarning, match=UNSEALED):
        library.load(earlier)
    found = library.evaluate(str(earlier))
    assert sum(UNSEALED in line for line in found.notes) == 1


def test_a_run_alone_or_its_weights_alone_may_be_earlier(resode, trained):
    summary = json.loads((trained / "summary.json").read_text())
    for key in ("files", "sha256"):
        summary.pop(key)
    (trained / "summary.json").write_text(json.dumps(summary))
    assert resode("evaluate", "run").err.count(UNSEALED) == 1
    assert UNSEALED not in resode("evaluate", "run/checkpoints/10", "--data", "digits").err
    exported = resode("export", "run", "--out", "new.safetensors")
    assert exported.err.count(UNSEALED) == 1
    assert UNSEALED not in resode("evaluate", "new.safetensors").err


def test_nothing_is_said_of_runs_of_today_and_shipped_weights(resode, trained):
    for words in (("evaluate", "run"), ("report", "run"), ("compare", "run"), ("report", shipped())):
        assert UNSEALED not in resode(*words).err
    assert UNSEALED not in resode("export", NEWER, "--out", "shipped.safetensors").err


def shipped() -> Path:
    from resode import pretrained

    return pretrained.file(NEWER)


# ---------------------------------------------------------------- reports


@pytest.mark.parametrize("what", ["run", "."])
def test_the_report_of_a_folder_that_is_read_only_is_printed(resode, trained, monkeypatch, what):
    def refuse(path, text):
        raise ResourceError(f"{path}: cannot be written (Read-only file system)")

    monkeypatch.setattr(atomic, "write_text", refuse)
    answer = resode("report", what)
    assert answer.code == 0
    assert "test error" in " ".join(answer.out.split())
    (line,) = [line for line in answer.lines if "no page was written" in line]
    assert line.endswith("(Read-only file system); --out FILE names another place")
    refused = resode("report", what, "--out", "elsewhere.html")
    assert refused.code == 5
