"""`resode lift`: a trained ResNet as a network of dynamic blocks, on which the other commands work."""

import json

import pytest
import torch
from safetensors.torch import load_file

import resode as library
from resode import weights
from resode.models import models

PLUGIN = """
from torch import nn
from resode.models import models

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.units = nn.Sequential(Unit(), Unit())
        self.fc = nn.Linear(4, 10)
    def forward(self, x):
        return self.fc(self.units(self.conv(x)).mean((2, 3)))

class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
    def forward(self, y):
        return y + self.conv(y).relu()

@models.register("own", summary="one of my own", shape=(1, 8, 8))
def own(*, classes=10, in_channels=1):
    return Net()
"""


def test_a_run_is_lifted_and_everything_works_on_it(resode, run, tmp_path):
    before = json.loads(resode("evaluate", run, "--json").out)
    answer = resode("lift", run, "--out", "lifted.safetensors")
    assert answer.code == 0, answer.err
    assert "stage 1  1 unit is 1 step of Projected Euler, width " in answer.out
    assert "parameters" in answer.out
    assert "logits: within" in answer.err
    assert "with lifted.optimizer.safetensors" in answer.err
    after = json.loads(resode("evaluate", "lifted.safetensors", "--json").out)
    assert after["top1_error"] == before["top1_error"]
    assert abs(after["loss"] - before["loss"]) < 1e-5
    card = weights.read_card("lifted.safetensors")
    assert card.training["lifted"].startswith(f"from {run} (")
    assert "its test error was" in card.training["lifted"]
    state = load_file(tmp_path / "lifted.optimizer.safetensors")
    assert state["momentum_buffer/stages.0.controls.0.conv1.weight"].abs().max() > 0

    assert resode("analyze", "lifted.safetensors", "--json").code == 0
    assert "lifted" in resode("show", "lifted.safetensors").out
    grids = ("--states", "double", "--data", "digits")
    fine = resode("regrid", "lifted.safetensors", *grids, "--out", "f.safetensors")
    assert fine.code == 0, fine.err
    assert json.loads(resode("evaluate", "f.safetensors", "--json").out)["samples"] == before["samples"]
    again = resode("lift", "lifted.safetensors", "--out", "again.safetensors")
    assert again.code == 2
    assert again.lines == ["resode: lifted.safetensors: this is a network of dynamic blocks already"]


def test_fewer_controls_are_written_with_a_table_of_errors(resode, run, tmp_path):
    words = ("--controls", "1", "--basis", "constant", "--data", "digits")
    answer = resode("lift", run, *words, "--out", "fewer.safetensors")
    assert answer.code == 0, answer.err
    assert "statistics: re-estimated on" in answer.err
    assert "test error" in answer.out
    error = json.loads(resode("evaluate", "fewer.safetensors", "--json").out)["top1_error"]
    assert f"{error:.2f} %" in answer.out
    assert "1 constant controls" in weights.read_card("fewer.safetensors").training["lifted"]
    refused = resode("lift", run, "--controls", "1", "--basis", "quartic", "--out", "no.safetensors")
    assert refused.code == 2
    assert len(refused.lines) == 1


def test_packaged_weights_are_lifted(resode, tmp_path):
    assert resode("lift", "short/resnet20", "--out", "lifted.safetensors").code == 0
    old, new = library.load("short/resnet20"), library.load(tmp_path / "lifted.safetensors")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(new(x), old(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fewer", [False, True])
def test_training_goes_on_from_a_lifted_run(resode, run, fewer):
    words = ("--controls", "1", "--basis", "cubic") if fewer else ()
    assert resode("lift", run, *words, "--out", "lifted.safetensors").code == 0
    init = ("--init", "lifted.safetensors", "--set", "init.optimizer=true", "--set", "epochs=1")
    answer = resode("train", "quickstart", "--out", "on", "--precision", "fp32", *init)
    assert answer.code == 0, answer.err
    assert "the recipe's, lifted" in answer.err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: no such run, checkpoint or file"),
        ("own.safetensors", "own.safetensors: no file can hold this lifted network: a Net is no ResNet of"),
        ("blocks.safetensors", "blocks.safetensors: this is a network of dynamic blocks already"),
    ],
)
def test_what_cannot_be_lifted_into_a_file_is_said_in_one_line(resode, tmp_path, monkeypatch, path, message):
    monkeypatch.setattr(models, "_entries", dict(models._entries))
    (tmp_path / "own.py").write_text(PLUGIN)
    library.plugins.load_plugins([tmp_path / "own.py"])
    preprocessing = weights.Preprocessing((0.5,), (0.2,), (8, 8), 1, tuple("0123456789"))
    for name, model, options in (
        ("own", "own", {}),
        ("blocks", "dynamicblocks", {"in_channels": 1, "widths": [4, 4]}),
    ):
        card = weights.Card(weights.Specification(model, options), preprocessing)
        weights.save(library.create(model, **options), tmp_path / f"{name}.safetensors", card)
    answer = resode("lift", path, "--out", "lifted.safetensors")
    assert answer.code == 2
    assert len(answer.lines) == 1
    assert message in answer.lines[0]
    assert not (tmp_path / "lifted.safetensors").exists()
