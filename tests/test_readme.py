"""README and the documentation run as printed; their figures are those of the records.

Commands in `console` blocks and Python blocks run, page by page, from top to bottom. Those on CIFAR-10 need
real data; trainings on it run as dry runs. Blocks without a language are not run.

Lines below a command, and a `text` block below Python, are what it prints: each is printed, in this order;
numbers and spaces may differ, and `...` stands for anything. At a line `^C` the command gets a SIGINT.
"""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from resode.cli import app, console, main
from resode.fields import activations, fields, norms
from resode.gradients import gradients
from resode.integrators import integrators
from resode.models import models
from resode.models.transitions import connectors
from resode.recipes import list_recipes
from resode.study import read as read_study
from resode.training import Experiment

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
TEXT = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
SMALL = ("--dry-run", "--compile", "off", "--set", "batch_size=8", "--set", "evaluation.batch_size=8")


def blocks(language, text):
    return re.findall(rf"^```({language})\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def printing_blocks(text):
    """Language, text, and the `text` block that follows, of the blocks that run."""
    pattern = r"^```(console|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    return re.findall(pattern, text, re.MULTILINE | re.DOTALL)


def transcript(text):
    """The commands of a console block, as words, each with the lines that it prints."""
    found = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((shlex.split(line[2:]), []))
        else:
            found[-1][1].append(line)
    return found


def commands(text):
    return [words for words, _ in transcript(text)]


def needs_cifar10(words):
    return "cifar10" in words or "akamaster" in words


class Terminal(io.StringIO):
    """Takes what is printed, and sends a SIGINT once the lines before `^C` are there."""

    def __init__(self, expected):
        super().__init__()
        self.expected = [line for line in expected if line.strip()]
        self.interrupts = "^C" in self.expected

    def write(self, text):
        written = super().write(text)
        if self.interrupts and not self.missing(self.expected[: self.expected.index("^C")]):
            self.interrupts = False
            signal.raise_signal(signal.SIGINT)
        return written

    def missing(self, expected):
        """The first of these lines that was not printed after those before it, or None."""
        printed = iter([plain(line) for line in self.getvalue().splitlines()])
        for line in expected:
            pattern = re.compile(".*".join(re.escape(part) for part in plain(line).split("...")))
            if line not in ("^C", "...") and not any(pattern.fullmatch(other) for other in printed):
                return line
        return None

    @contextlib.contextmanager
    def listening(self):
        """Context manager: all that is printed comes here, and has to be what is expected."""
        with contextlib.redirect_stdout(self), contextlib.redirect_stderr(self):
            yield
        missing = self.missing(self.expected)
        assert missing is None, f"not printed: {missing}\n{self.getvalue()}"


def plain(line):
    """A line without its numbers and widths."""
    line = re.sub(r"\d+ min \d+ s", "0 s", line)
    return re.sub(r"\s+", " ", re.sub(r"[-+]?\d+([.,]\d+)*(e[-+]?\d+)?", "0", line)).strip()


def run(words, expected=()):
    assert words[0] == "resode"
    words, file = (words[:-2], words[-1]) if ">" in words else (words, os.devnull)
    terminal = Terminal(expected)
    with terminal.listening(), Path(file).open("w", encoding="utf-8") as written:
        into = contextlib.nullcontext() if file == os.devnull else contextlib.redirect_stdout(written)
        with into, pytest.raises(SystemExit) as exit_:
            main(words[1:])
    assert (exit_.value.code or 0) == (130 if "^C" in expected else 0), (words, terminal.getvalue())


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
    """A folder of 300 photos of different sizes in three classes, in the present directory."""
    draw = np.random.default_rng(0)
    colours = {"beach": (230, 200, 130), "forest": (60, 120, 50), "sky": (100, 150, 240)}
    for name, colour in colours.items():
        folder = Path("photos", name)
        folder.mkdir(parents=True)
        for number in range(100):
            patches = np.array(colour) * draw.uniform(0.6, 1.1) + draw.normal(0, 50, (6, 6, 3))
            size = draw.integers(60, 140, 2).tolist()
            photo = Image.fromarray(patches.clip(0, 255).astype(np.uint8)).resize(
                size, Image.Resampling.BICUBIC
            )
            photo.save(folder / f"{number:03}.jpg", quality=85)


@pytest.mark.parametrize("page", pages(cifar10=False))
def test_a_page_runs_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console.out, "_width", 80)
    for registry in (activations, connectors, fields, gradients, integrators, models, norms):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))  # a page may register its own
    if "photos" in TEXT[page]:
        draw_photos()
    scope = {}
    for language, text, printed in printing_blocks(TEXT[page]):
        if language == "python":
            with Terminal(printed.splitlines()).listening():
                exec(compile(text, page, "exec"), scope)
            continue
        for words, expected in transcript(text):
            if not needs_cifar10(words):
                run(words, expected)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages(cifar10=True))
def test_the_commands_on_cifar10_run(page, tmp_path, monkeypatch, real_data):
    monkeypatch.chdir(tmp_path)
    for _, text in blocks("console", TEXT[page]):
        for words, expected in transcript(text):
            if not needs_cifar10(words):
                continue
            if words[1] == "train":
                words = [word for word in words if word not in ("--resume", "--dry-run")] + list(SMALL)
            if words[1] == "import":
                Path(words[3]).symlink_to(real_data / "checkpoints" / "akamaster-resnet20.th")
            run(words, expected)


def commands_that_do_not_run():
    """Commands in blocks without a language, and indented ones."""
    for name, text in TEXT.items():
        for block in re.findall(r"^```(?:\w+)?\n.*?^```|^    resode .*$", text, re.MULTILINE | re.DOTALL):
            if not re.match(r"```\w", block):
                for line in re.findall(
                    r"^ *(?:torchrun .*-m )?resode (.*?)(?:\s{2,}#.*)?$", block, re.MULTILINE
                ):
                    yield pytest.param(line, id=f"{name}: {line}")


@pytest.mark.parametrize("line", list(commands_that_do_not_run()))
def test_a_command_that_is_not_run_is_valid(line):
    name, *words = shlex.split(line)
    options = get_command(app).commands[name].make_context(name, words).params
    if options.get("recipe") in list_recipes():
        init = [f"init.path={options['init']}"] if options.get("init") else []
        Experiment.from_recipe(options["recipe"], [*(options["settings"] or ()), *init])


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
