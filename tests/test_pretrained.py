"""Pretrained networks load by their names, and evaluate to the errors that their model cards state."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import resode
from resode import pretrained, weights
from resode.cli import app
from resode.errors import InputError, IntegrityError
from resode.training.records.locations import weights_file

NAMES = pretrained.names()


def card_of(name):
    return weights.read_card(pretrained.file(name))


def test_there_are_some_and_all_are_small():
    files = [pretrained.file(name) for name in NAMES]
    assert "short/resnet20" in NAMES
    assert all(file.stat().st_size < 4_000_000 for file in files)
    assert sum(file.stat().st_size for file in files) < 20_000_000


def test_a_file_that_was_not_shipped_is_refused(tmp_path, monkeypatch):
    shutil.copytree(pretrained.FOLDER, tmp_path / "copy")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "copy")
    path = pretrained.file("short/resnet20")
    weights.save(weights.load(path), path, replace(weights.read_card(path), training={}))
    with pytest.raises(
        IntegrityError, match=r"does not match the hash in hashes\.json; install resode again"
    ):
        resode.load("short/resnet20")


@pytest.mark.parametrize("name", NAMES)
def test_the_model_card_states_what_the_file_holds(name):
    text = pretrained.file(name).with_suffix(".md").read_text()
    trained = card_of(name).training
    assert trained["licence"] == "MIT"
    assert f"{trained['test_error']:.2f} % of {trained['test_samples']:,} images of {trained['data']}" in text
    assert f"recipe `{trained['recipe']}`, seed {trained['seed']}, {trained['epochs']} epochs" in text
    assert f'resode.load("{name}")' in text
    assert "Licence" in text


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_by_its_name(name):
    model = resode.load(name)
    size, channels = model.preprocessing.size, model.preprocessing.channels
    logits = model(model.preprocessing(torch.zeros(2, channels, *size, dtype=torch.uint8)))
    assert logits.shape == (2, len(model.preprocessing.classes))
    assert not model.training


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_evaluates_to_the_stated_error(name, request):
    trained, model = card_of(name).training, resode.load(name)
    if trained["data"] != "digits":
        request.getfixturevalue("real_data")
    data = resode.load_data(trained["data"]).test
    wrong = 0
    with torch.inference_mode():
        for start in range(0, len(data), 100):
            images = torch.tensor(data.pixels[start : start + 100]).permute(0, 3, 1, 2)
            guesses = model(model.preprocessing(images)).argmax(1)
            wrong += int((guesses != torch.tensor(data.labels[start : start + 100])).sum())
    assert len(data) == trained["test_samples"]
    assert 100 * wrong / len(data) == pytest.approx(
        trained["test_error"], abs=0.02
    )  # rounding of other machines


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # from torch's compiler
def test_half_precision_keeps_the_error_to_a_tenth_of_a_point(real_data):
    """bf16, frozen and compiled, beside fp32, on all test images."""
    wrong = []
    for words in ([], ["--precision", "bf16", "--compile", "on"]):
        result = CliRunner().invoke(
            app, ["evaluate", "fast/resnet20-cpu", "--data", "cifar10", "--json", *words]
        )
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        assert record["samples"] == 10_000
        wrong.append(record["top1_error"])
    assert wrong[1] == pytest.approx(wrong[0], abs=0.1)


def test_commands_take_a_name():
    output = CliRunner().invoke(app, ["list", "models", "short/"]).stdout
    assert "short/resnet20 " in output
    assert "12.91 %" in output


def test_a_file_comes_before_a_pretrained_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert weights_file("short/resnet20") == pretrained.file("short/resnet20")
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "resnet20").write_bytes(b"mine")
    assert weights_file("short/resnet20").read_bytes() == b"mine"


def test_a_folder_without_a_run_does_not_hide_a_pretrained_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "short" / "resnet20"
    run.mkdir(parents=True)
    assert weights_file("short/resnet20") == pretrained.file("short/resnet20")
    (run / "experiment.yaml").write_text("name: mine")  # a run that was interrupted early
    with pytest.raises(InputError, match="holds no run"):
        weights_file("short/resnet20")


def test_the_nearest_name_is_suggested():
    with pytest.raises(InputError, match="no such run, checkpoint or file; did you mean 'short/resnet20'"):
        resode.load("short/resnet21")
