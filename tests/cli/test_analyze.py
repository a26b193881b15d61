"""`resode analyze`: the tables, the files, and that both say what the library says."""

import csv
import json
from dataclasses import asdict

import pytest
import torch
from PIL import Image

import resode as library
from resode import weights
from resode.analysis import pde, vector_fields
from resode.cli import console
from resode.models import models
from resode.models.twisting import twisted_convolutions
from tests.cli.conftest import TINY


@pytest.fixture
def twisted(resode, tmp_path):
    """A weights file of a small network whose twists are random numbers."""
    answer = resode("twist", "digits_resnet8", "--tie", "free", "--out", "t.safetensors")
    assert answer.code == 0, answer.err
    model = library.load("t.safetensors")
    with torch.no_grad():
        for item in twisted_convolutions(model):
            item.layer.twist.normal_(std=0.1, generator=torch.manual_seed(0))
    weights.save(model, tmp_path / "t.safetensors", model.card)
    return tmp_path / "t.safetensors"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def as_read(value, like):
    if like is None:
        return None if value == "" else value
    return type(like)(value)


def is_picture(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 300


def test_a_run_is_read_as_a_pde(resode, trained):
    answer = resode("analyze", trained)
    assert answer.code == 0, answer.err
    assert "skip connection u + F(u)" in answer.out
    assert "independent entries" in answer.out
    assert "twisted layer" not in answer.out
    folder = trained / "analysis"
    assert sorted(path.name for path in folder.iterdir()) == ["pde.csv", "pde.png"]
    assert is_picture(folder / "pde.png")
    expected = pde(library.load(trained))
    found = rows(folder / "pde.csv")
    assert len(found) == len(expected) == 7
    for row, kernel in zip(found, expected, strict=True):
        assert {key: as_read(row[key], value) for key, value in asdict(kernel).items()} == asdict(kernel)
    before = (folder / "pde.png").read_bytes()
    assert resode("analyze", trained, "--pde").code == 0
    assert (folder / "pde.png").read_bytes() == before
    assert resode("evaluate", trained).code == 0  # the run is as it was

    checkpoint = max((trained / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert resode("analyze", checkpoint).code == 0
    assert (trained / f"analysis-{checkpoint.name}" / "pde.csv").is_file()
    answer = resode("train", "quickstart", "--out", "run", "--resume", *TINY)
    assert answer.code == 0, answer.err


def test_the_vector_fields_of_a_twisted_network(resode, twisted, tmp_path):
    answer = resode("analyze", "t.safetensors", "--twist", "--out", "somewhere/else")
    assert answer.code == 0, answer.err
    assert "layer3.0.conv2" in answer.out
    assert "network term" not in answer.out
    folder = tmp_path / "somewhere" / "else"
    pictures = ["twist-other.png", "twist-stage1.png", "twist-stage2.png", "twist-stage3.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["twist.csv", *pictures])
    assert all(is_picture(folder / name) for name in pictures)
    for row, field in zip(rows(folder / "twist.csv"), vector_fields(library.load(twisted)), strict=True):
        assert row["name"] == field.name
        for key in ("constant", "dilation", "rotation", "strain", "third_order", "even", "share"):
            assert float(row[key]) == getattr(field, key)
        assert float(row["pattern_shear"]) == field.pattern.shear


def test_without_a_word_a_twisted_network_is_read_in_both_ways(resode, twisted, tmp_path):
    answer = resode("analyze", "t.safetensors", "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert record["model"] == "digits_resnet8, twisted"
    assert {"terms", "kernels", "twist", "files", "path"} < record.keys()
    assert all((tmp_path / file).is_file() for file in record["files"])
    assert (tmp_path / "t-analysis" / "pde.png").is_file()
    model = library.load(twisted)
    assert record["kernels"] == [asdict(kernel) for kernel in pde(model)]
    assert record["twist"] == [asdict(field) for field in vector_fields(model)]
    assert {kernel["term"] for kernel in record["kernels"]} == {"W", "X", "Y"}
    assert "twist" not in json.loads(resode("analyze", "t.safetensors", "--json", "--pde").out)


def test_pretrained_weights_keep_their_name(resode, tmp_path):
    """The files lie in a folder that is not called like the weights."""
    for _ in range(2):
        answer = resode("analyze", "short/resnet20", "--pde", "--json")
        assert answer.code == 0, answer.err
    assert json.loads(answer.out)["files"] == ["resnet20-analysis/pde.csv", "resnet20-analysis/pde.png"]
    assert not (tmp_path / "short").exists()


def test_a_new_model_is_the_same_at_each_call(resode, tmp_path):
    first = resode("analyze", "digits_resnet8", "--json")
    assert first.code == 0, first.err
    assert "new weights (seed 0)" in first.err
    assert (tmp_path / "digits_resnet8-analysis" / "pde.csv").is_file()
    assert resode("analyze", "digits_resnet8", "--json").out == first.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digits_resnet8", "--twist"), "`resode twist digits_resnet8 --out FILE.safetensors` makes some"),
        (("digits_resnet9",), "digits_resnet9: no such run, checkpoint or file"),
        (("dynamic",), "dynamic: no such run, checkpoint or file"),
        (("weights.pth",), "resode import"),
    ],
)
def test_what_cannot_be_analysed(resode, tmp_path, words, message):
    (tmp_path / "weights.pth").write_bytes(b"PK" + bytes(100))
    answer = resode("analyze", *words)
    assert answer.code == 2, answer.err
    assert message in answer.err
    assert answer.out == ""
    assert len([line for line in answer.lines if "new weights" not in line]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.pth"]


def test_a_network_without_3x3_convolutions_has_nothing_to_read(resode, tmp_path, monkeypatch):
    plugin = "from torch import nn\nfrom resode.models import models\n"
    plugin += "@models.register('flat', shape=(3, 8, 8))\ndef flat(*, classes=10, in_channels=3):\n"
    plugin += "    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.LazyLinear(classes))\n"
    (tmp_path / "flat.py").write_text(plugin)
    monkeypatch.setattr(models, "_entries", dict(models._entries))
    answer = resode("analyze", "flat", "--plugin", "flat.py")
    assert answer.code == 2
    assert "flat: has no 3x3 convolution" in answer.err


def test_a_place_that_cannot_be_written_exits_5(resode):
    assert resode("analyze", "digits_resnet8", "--out", "/proc/resode-analysis").code == 5


def test_no_column_and_no_name_is_cut_at_80_columns(resode, twisted, monkeypatch):
    monkeypatch.setattr(console, "out", console.Screen(width=80))
    out = resode("analyze", twisted, "--out", "pde").out
    assert max(map(len, out.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    for words in ("reaction", "strength", "smoothing", "outside of stages", "layer1.0.conv1", "dilation",
                  "strain", "explains"):  # fmt: skip
        assert words in out
