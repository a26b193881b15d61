"""README and the documentation run as printed; their figures are those of the records.

Commands in `console` blocks and Python blocks run, page by page, from top to bottom. Those on CIFAR-10 need
real data; trainings on it run as dry runs. Blocks without a language are not run.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resode.cli import main
from resode.fields import activations, fields, norms
from resode.gradients import gradients
from resode.integrators import integrators
from resode.models import models
from resode.models.transitions import connectors
from resode.study import read as read_study
from resode.training import Experiment

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
TEXT = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
SMALL = ("--dry-run", "--compile", "off", "--set", "batch_size=8", "--set", "evaluation.batch_size=8")


def blocks(language, text):
    return re.findall(rf"^```({language})\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    return [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ ")]


def needs_cifar10(words):
    return "cifar10" in words or "akamaster" in words


def run(words):
    assert words[0] == "resode"
    with pytest.raises(SystemExit) as exit_:
        main(words[1:])
    assert not exit_.value.code, words


def pages(*, cifar10):
    """The pages that have something to run on CIFAR-10, or something else."""
    found = []
    for name, text in sorted(TEXT.items()):
        words = [words for _, block in blocks("console", text) for words in commands(block)]
        python = blocks("python", text) and not cifar10
        if python or any(needs_cifar10(command) == cifar10 for command in words):
            found.append(name)
    return found


def draw_photos():
    """The folder of pictures that README trains on, in the present directory."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 2)):
        for name in ("cat", "dog"):
            folder = Path("photos", split, name)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.parametrize("page", pages(cifar10=False))
def test_a_page_runs_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for registry in (activations, connectors, fields, gradients, integrators, models, norms):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))  # a page may register its own
    draw_photos()
    scope = {}
    for language, text in blocks("console|python", TEXT[page]):
        if language == "python":
            exec(compile(text, page, "exec"), scope)
            continue
        for words in commands(text):
            if not needs_cifar10(words):
                run(words)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages(cifar10=True))
def test_the_commands_on_cifar10_run(page, tmp_path, monkeypatch, real_data):
    monkeypatch.chdir(tmp_path)
    for _, text in blocks("console", TEXT[page]):
        for words in filter(needs_cifar10, commands(text)):
            if words[1] == "train":
                words = [word for word in words if word not in ("--resume", "--dry-run")] + list(SMALL)
            if words[1] == "import":
                Path(words[3]).symlink_to(real_data / "checkpoints" / "akamaster-resnet20.th")
            run(words)


def test_make_knows_the_two_commands():
    targets = re.findall(r"^make (\w+)", TEXT["README.md"], re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)(#[^)]+)?\)", TEXT[page]):
        if not target.startswith("http"):
            path = (PAGES[page].parent / target) if target else PAGES[page]
            assert path.exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                made = {"#" + re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
                assert anchor in made, anchor


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


def test_the_study_is_read(tmp_path):
    ((_, text),) = blocks("yaml", TEXT["docs/studies.md"])
    (tmp_path / "widths.yaml").write_text(text, encoding="utf-8")
    jobs = read_study(tmp_path / "widths.yaml").jobs()
    assert len(jobs) == 2 * 2 * 3
