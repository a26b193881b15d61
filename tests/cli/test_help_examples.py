"""The examples in the help of every command are right: each parses, its settings are valid, and most run.

They run on tiny runs of digits and on synthetic checkpoints, at least one for each command. Those that train
for minutes, need a cluster or large data are read only.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command

import resode as library
from resode.cli import app
from resode.training import Experiment
from resode.training.records.run import Run
from tests.cli.conftest import TINY
from tests.interop.foreign import Akamaster, Fattorib, synthesise

COMMANDS = {command.name: command.callback for command in app.registered_commands}
READ_ONLY = re.compile(
    r"^train (?!quickstart$)|^import dynamicblocks|^study (?!.*--dry-run)|--data cifar10|--robustness"
    r"|CIFAR-10-C|--compile on|onnx|checkpoints/|-twisted"
)
SHORTER = {"train": TINY, "bench": ("--seconds", "0.2", "--compile", "off", "--precision", "fp32")}
STUDY = """
recipe: quickstart
set: {epochs: 2}
arms: {plain: {}, wide: {set: {model.widths: [8, 8, 8]}}}
seeds: [0, 1]
"""


def examples():
    for name, callback in COMMANDS.items():
        text = (callback.__doc__ or "").partition("Examples:")[2]
        for paragraph in re.split(r"\n\s*\n", text):
            line = re.sub(r"\\?\s+", " ", paragraph.strip())
            if found := re.fullmatch(r"(?:torchrun .*-m )?resode (\w.*)", line):
                yield pytest.param(found[1], id=f"{name}: {found[1]}")


@pytest.fixture(scope="module")
def dynamic_run(tmp_path_factory):
    """A finished run of a network of three dynamic blocks on digits."""
    path = tmp_path_factory.mktemp("dynamic") / "run"
    settings = {"model.widths": [4, 4, 6, 6], "model.states": [0, 1, 2, 3, 4], "epochs": 1, "batch_size": 512}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESODE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        library.train("quickstart-parabolic", out=path, progress=False, precision="fp32", **settings)
    return path


@pytest.fixture
def place(trained_once, dynamic_run, tmp_path):
    """A folder with the files that the examples name."""
    for name, seed in {"r20": 2, "a-seed0": 0, "a-seed1": 1, "b-seed0": 0, "b-seed1": 1}.items():
        run = Path(shutil.copytree(trained_once, tmp_path / "runs" / name))
        for file in ("experiment.yaml", "summary.json"):
            text = (run / file).read_text()
            text = re.sub(r'("?seed"?: )0', rf"\g<1>{seed}", text, count=1)
            (run / file).write_text(text.replace("lr: 0.1", "lr: 0.2") if name.startswith("b") else text)
        Run(run).write_summary(json.loads((run / "summary.json").read_text()))  # sealed again
    for folder in ("widths", "states"):
        shutil.copytree(trained_once, tmp_path / "studies" / folder / "euler" / "seed0")
        (tmp_path / "studies" / folder / "arms.json").write_text('{"euler/seed0": "euler"}')
    shutil.copytree(dynamic_run, tmp_path / "runs" / "rk4")
    shutil.copy(trained_once / "model.safetensors", tmp_path / "akamaster20.safetensors")
    torch.save(synthesise(Akamaster(20)).state_dict(), tmp_path / "resnet20.th")
    torch.save(synthesise(Fattorib(20)).state_dict(), tmp_path / "resnet20.pth")
    (tmp_path / "widths.yaml").write_text(STUDY)
    (tmp_path / "photos").mkdir()
    pixels = np.asarray(library.load_data("digits").test.pixels[0])[:, :, 0]
    for file in ("cat.jpg", "dog.png", "photos/one.png"):
        Image.fromarray(pixels).save(tmp_path / file)
    return tmp_path


@pytest.mark.parametrize("line", list(examples()))
def test_an_example_is_right(line, request):
    name, *words = shlex.split(line.partition(" > ")[0])
    context = get_command(app).commands[name].make_context(name, list(words))
    if name in ("train", "show", "bench") and context.params.get("recipe") in library.list_recipes():
        init = context.params.get("init")
        settings = [*(context.params.get("settings") or ()), *([f"init.path={init}"] if init else [])]
        Experiment.from_recipe(context.params["recipe"], settings)
    if READ_ONLY.search(line):
        return
    request.getfixturevalue("place")
    resode = request.getfixturevalue("resode")
    if name == "import":
        Path("akamaster20.safetensors").unlink()  # which this example makes
    answer = resode(name, *words, *SHORTER.get(name, ()))
    assert answer.code == 0, answer.err
    assert answer.out or answer.err


def test_an_example_of_every_command_runs():
    running = {
        param.values[0].partition(" ")[0] for param in examples() if not READ_ONLY.search(param.values[0])
    }
    assert running == set(COMMANDS)
