"""`resode evaluate --robustness` and `--corruptions`: what the library measures, as a table and as JSON."""

import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import resode as library
from resode import weights
from resode.analysis import robustness as analysis
from resode.cli import console
from resode.data.corruptions import CLASSES, STANDARD

LABELS = np.array([7, 7, 2, 0])


def written(folder, *names):
    """CIFAR-10-C of random pixels, four images at each severity of each corruption."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in names:
        np.save(folder / f"{name}.npy", generator.integers(0, 256, (5 * 4, 32, 32, 3), np.uint8))
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    return folder


@pytest.fixture
def colour(tmp_path):
    """A new network of 32x32 photographs that sees class 7 (horse) everywhere; its classes run backwards."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = library.create("he_resnet8").eval()
    with torch.no_grad():
        network.fc.bias[9 - 7] += 100
    preprocessing = weights.Preprocessing((0.5,) * 3, (0.25,) * 3, (32, 32), 3, CLASSES[::-1])
    card = weights.Card(weights.Specification("he_resnet8", {"classes": 10}), preprocessing)
    weights.save(network, tmp_path / "colour.safetensors", card)
    return tmp_path / "colour.safetensors"


@pytest.fixture
def photographs(tmp_path):
    """A folder with a photograph of noise of each class, for training and for testing."""
    generator = np.random.default_rng(1)
    for split in ("train", "test"):
        for name in CLASSES:
            path = tmp_path / "photographs" / split / name / "one.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return tmp_path / "photographs"


def test_the_column_is_that_of_the_library(resode, trained):
    answer = resode("evaluate", trained, "--robustness", "--images", "30", "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    found = record["robustness"]
    assert (found["images"], found["of"], record["samples"]) == (30, 360, 360)
    assert found["pgd"] == {"steps": 10, "step": 0.25, "start": "random", "seed": 0}
    module = library.load(trained)
    network = analysis.Preprocessed(module, module.preprocessing)
    rows = analysis.robustness(network, analysis.random_subset(library.load_data("digits").test, 30))
    assert found["rows"] == [asdict(row) for row in rows]
    errors = {(row["change"], row["amount"]): row["top1_error"] for row in found["rows"]}
    assert errors["pgd", 8] >= errors["fgsm", 8] >= errors["clean", 0]
    assert errors["pgd", 8] > errors["pgd", 1]


def test_the_table_stands_below_the_usual_line(resode, trained):
    usual = resode("evaluate", trained).out
    answer = resode("evaluate", trained, "--robustness", "--images", "20", "--batch-size", "7")
    assert answer.code == 0, answer.err
    assert answer.out.startswith(usual)
    table = answer.out.removeprefix(usual)
    assert "20 of 360 images" in table
    assert "PGD: 10 steps of 0.25 eps from a random start, seed 0" in table
    assert len(re.findall(r"\d %", table)) == len(analysis.PERTURBATIONS)
    for text in ("clean", "-30\N{DEGREE SIGN}", "+10\N{DEGREE SIGN}", "x 0.7", "fgsm", "pgd", "eps 8/255"):
        assert text in table


def test_of_all_images_the_clean_error_is_the_usual_one(resode, trained, monkeypatch):
    monkeypatch.setattr(analysis, "PERTURBATIONS", (("clean", 0),))
    sizes, plain = [], analysis._batches
    monkeypatch.setattr(analysis, "_batches", lambda *a: sizes.append(a[-1]) or plain(*a))
    record = json.loads(resode("evaluate", trained, "--robustness", "--batch-size", "90", "--json").out)
    assert sizes == [90]
    assert record["robustness"]["images"] == record["samples"] == 360
    assert record["robustness"]["rows"][0]["top1_error"] == pytest.approx(record["top1_error"], abs=1e-6)


def test_every_corruption_is_listed_by_severity(resode, colour, photographs, tmp_path):
    folder = written(tmp_path / "CIFAR-10-C", *STANDARD, "saturate")
    words = ("evaluate", colour, "--data", photographs, "--corruptions", folder)
    record = json.loads(resode(*words, "--json").out)
    found = record["corruptions"]
    assert "robustness" not in record
    assert (found["images"], found["of"], found["folder"]) == (4, 4, str(folder))
    assert list(found["errors"]) == [*STANDARD, "saturate"]
    assert found["errors"]["fog"] == found["errors"]["saturate"] == [50] * 5
    assert found["mean"] == 50
    assert resode(*words, "--json", "--precision", "bf16").code == 0

    table = resode(*words).out
    assert "CIFAR-10-C, 4 of 4 images of each severity" in table
    assert "saturate (extra)" in table
    assert f"{found['mean']:.2f} %" in table.splitlines()[-2]


def test_some_corruptions_have_no_mean(resode, colour, photographs, tmp_path, monkeypatch):
    written(tmp_path / "CIFAR-10-C", "fog")
    monkeypatch.setenv("RESODE_DATA", str(tmp_path))
    words = ("evaluate", colour, "--data", photographs, "--corruptions", "cifar10-c", "--images", "3")
    answer = resode(*words, "--json")
    record = json.loads(answer.out)["corruptions"]
    assert record["mean"] is None
    assert (record["images"], record["of"]) == (3, 4)
    thirds = 3 * record["errors"]["fog"][0] / 100
    assert round(thirds) in (1, 2)
    assert thirds == pytest.approx(round(thirds))
    assert "lacks gaussian_noise, " in answer.err
    assert "fifteen" not in resode(*words).out


def test_options_that_exclude_each_other_are_refused(resode, trained):
    for words, message in (
        (("--images", "5"), "--images: needs --robustness or --corruptions"),
        (("--robustness", "--images", "0"), "--images"),
        (("--robustness", "--compile", "on"), "no gradient to attack"),
        (("--robustness", "--precision", "bf16"), "drop --precision"),
        (("--corruptions", "CIFAR-10-C"), "the network takes 8x8x1"),
    ):
        answer = resode("evaluate", trained, *words)
        assert answer.code == 2
        assert message in answer.err
        assert len(answer.lines) == 1
        assert answer.out == ""


def test_bad_arrays_end_it_before_anything_is_measured(resode, colour, photographs, tmp_path):
    words = ("evaluate", colour, "--data", photographs, "--corruptions")
    answer = resode(*words, tmp_path / "none")
    assert (answer.code, answer.out, len(answer.lines)) == (2, "", 1)
    folder = written(tmp_path / "CIFAR-10-C", "fog")
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-1])
    answer = resode(*words, folder)
    assert (answer.code, answer.out, len(answer.lines)) == (3, "", 1)
    assert "fog.npy: is truncated or not a plain array" in answer.err


def test_the_progress_of_a_long_measurement_goes_to_stderr(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 8.0, 11.0, 80.0, 200.0])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with console.waiting("measuring") as show:
        for share in (0.01, 0.1, 0.11, 0.8, 1.0):
            show(share)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "measuring: 10% done, about 70 s to go",
        "measuring: 80% done, about 20 s to go",
    ]


def test_classes_of_cifar10_c_are_matched_as_the_user_says(resode, colour, photographs, tmp_path):
    """The network sees horses everywhere, its class 2; as by position they are birds."""
    folder = written(tmp_path / "c", "fog")
    errors = {}
    backwards = tmp_path / "backwards.json"
    backwards.write_text(json.dumps(dict(zip(CLASSES, CLASSES[::-1], strict=True))))
    for how in ("by-name", "by-position", backwards):
        words = ("--data", photographs, "--corruptions", folder, "--classes", how, "--json")
        answer = resode("evaluate", colour, *words)
        assert answer.code == 0, answer.err
        record = json.loads(answer.out)
        assert record["classes"] == record["corruptions"]["classes"]
        errors[how] = record["corruptions"]["errors"]["fog"][0], record["top1_error"]
    assert record["classes"]["horse"] == "bird"
    assert errors["by-name"] == (50, 90)  # two of four images are horses
    assert errors["by-position"] == errors[backwards] == (75, 90)  # one is a bird


def test_assumed_classes_of_a_network_match_cifar10_c_by_position(resode, colour, photographs, tmp_path):
    network = library.load(colour)
    numbered = replace(network.preprocessing, classes=tuple("0123456789"))
    card = replace(network.card, preprocessing=numbered, training={"classes": "assumed"})
    weights.save(network, tmp_path / "numbered.safetensors", card)
    folder = written(tmp_path / "c", "fog")
    words = ("--data", photographs, "--corruptions", folder, "--json")
    answer = resode("evaluate", "numbered.safetensors", *words)
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert (record["classes"], record["corruptions"]["classes"]) == ("assumed", "assumed")
    assert "class names are assumed" in answer.err
