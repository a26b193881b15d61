"""README's commands and Python run as printed; its figures are those of the records."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from resode.cli import main
from resode.study import read as read_study
from resode.training import Experiment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    return [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ ")]


def run(words):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert not exit_.value.code, words


CONSOLE = [commands(block) for block in blocks("console")]


def test_make_knows_the_two_commands():
    for target in re.findall(r"^make (\w+)", blocks("")[0], re.MULTILINE):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_commands_on_digits_run_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for digits in (CONSOLE[0], CONSOLE[2], CONSOLE[4], CONSOLE[6], CONSOLE[7]):
        assert all(words[0] == "resode" for words in digits)
        for words in digits:
            run(words[1:])


def test_the_commands_on_cifar10_are_understood(tmp_path, monkeypatch, real_data):
    """Each long training is asked for as a dry run, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for words in (*CONSOLE[1], *CONSOLE[3]):
        if words[1] == "train":
            words = [w for w in words if w not in ("--resume", "--dry-run")] + ["--dry-run"]
            words += ["--set", "batch_size=8", "--set", "evaluation.batch_size=8", "--compile", "off"]
        run(words[1:])


@pytest.mark.slow
def test_the_published_checkpoint_comes_in_as_printed(tmp_path, monkeypatch, real_data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / CONSOLE[5][0][3]).symlink_to(real_data / "checkpoints" / "akamaster-resnet20.th")
    for words in CONSOLE[5]:
        run(words[1:])


def test_the_python_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), scope)
    assert scope["logits"].shape == (4, 10)
    assert scope["finer"].stages[0].stage.states.steps == 8


def test_the_documentation_runs_as_printed():
    for page in (ROOT / "docs").glob("*.md"):
        scope = {}
        for code in blocks("python", page.read_text(encoding="utf-8")):
            exec(compile(code, page.name, "exec"), scope)
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("recipe", "record", "split"),
    [
        ("quickstart", "quickstart", "test"),
        ("quickstart-parabolic", "quickstart-parabolic", "test"),
        ("quickstart-twist", "quickstart-twist", "test"),
        ("short/resnet20", "short-resnet20", "test"),
        ("short/resnet20", "short-resnet20-validation", "validation"),
    ],
)
def test_what_a_recipe_expects_was_recorded(recipe, record, split):
    summary = json.loads((ROOT / "results" / record / "summary.json").read_text())
    expected = Experiment.from_recipe(recipe).about.expected
    assert f"{summary[split]['top1_error']:.2f} %" in expected


def test_the_figures_are_those_of_the_records():
    check = [sys.executable, str(ROOT / "results" / "tables.py"), "--check"]
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    subprocess.run(check, check=True, env=environment)


def test_the_study_is_understood(tmp_path):
    (tmp_path / "widths.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    jobs = read_study(tmp_path / "widths.yaml").jobs()
    assert len(jobs) == 2 * 2 * 3
