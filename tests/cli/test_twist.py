"""`resode twist`: a trained network twisted, and trained on."""

import json

import pytest
import torch
from safetensors.torch import load_file

import resode as library
from resode.models.twisting import twisted_convolutions
from resode.training import Run
from tests.cli.conftest import SETTINGS

TINY = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]


def test_a_run_is_twisted_evaluates_the_same_and_is_trained_on(resode, run, tmp_path):
    before = json.loads(resode("evaluate", run, "--json").out)
    answer = resode("twist", run, "--stages", "1", "--out", "t.safetensors")
    assert answer.code == 0, answer.err
    assert "stage 1  layer1.0.conv1  conformal" in answer.out
    assert "parameters     " in answer.out
    assert "multiply-adds  " in answer.out
    assert "with t.optimizer.safetensors" in answer.err
    after = json.loads(resode("evaluate", "t.safetensors", "--json").out)
    assert after["top1_error"] == before["top1_error"]
    assert abs(after["loss"] - before["loss"]) < 1e-5
    state = load_file(tmp_path / "t.optimizer.safetensors")
    assert state["momentum_buffer/layer1.0.conv1.twist"].abs().max() == 0
    assert state["momentum_buffer/layer1.0.conv1.weight"].abs().max() > 0

    init = ("--init", "t.safetensors", "--set", "init.optimizer=true")
    answer = resode("train", "quickstart", "--out", "on", *TINY, *init)
    assert answer.code == 0, answer.err
    assert "the recipe's, twisted" in answer.err
    layers = twisted_convolutions(library.load(tmp_path / "on"))
    assert layers
    assert all(item.layer.twist.abs().max() > 0 for item in layers)
    assert "twisted" in resode("show", "t.safetensors").out
    again = resode("twist", "on", "--stages", "2", "--tie", "free", "--out", "twice.safetensors")
    assert again.code == 0, again.err
    answer = resode("train", "quickstart", "--out", "more", *TINY, "--init", "twice.safetensors")
    assert answer.code == 0, answer.err


def test_separately_computed_it_is_the_same_bit_for_bit(resode, run, tmp_path):
    assert resode("twist", run, "--form", "separate", "--out", "t.safetensors").code == 0
    old, new = library.load(run).eval(), library.load(tmp_path / "t.safetensors").eval()
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(old(x), new(x))


def test_a_new_model_is_twisted_and_trained(resode, tmp_path):
    answer = resode(
        "twist", "he_resnet8", "--where", "layer1.*.conv2", "--tie", "odd", "--out", "n.safetensors"
    )
    assert answer.code == 0, answer.err
    assert "layer1.0.conv2  odd" in answer.out
    assert "without an optimizer's state" in answer.err


def test_a_recipe_may_name_a_twisted_model(resode):
    words = ("--set", "model.name=twisted", "--set", "model.of=he_resnet8", "--set", "model.where=[1]")
    answer = resode("show", "he2016/resnet20", *words)
    assert answer.code == 0, answer.err
    assert "twisted, " in answer.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stages", "9"), "no 3x3 convolution in stage 9"),
        (("--stages", "one"), "numbers with commas between"),
        (("--stages", ","), "numbers with commas between"),
        (("--stages", "²"), "numbers with commas between"),
        (("--where", "layer1.0.conv7"), "no convolution is named 'layer1.0.conv7'; did you mean"),
        (("--tie", "konformal"), "unknown tie 'konformal'; did you mean 'conformal'"),
        (("--degree", "0"), "degree 0; a positive integer"),
        (("--out", "t.pt"), "must end in .safetensors"),
    ],
)
def test_what_cannot_be_twisted(resode, run, words, message):
    answer = resode("twist", run, "--out", "t.safetensors", *words)
    assert answer.code == 2
    assert message in answer.err
    assert len(answer.lines) == 1


def test_a_new_model_has_no_normalisation_of_its_own_and_is_the_same_each_time(resode, tmp_path):
    for name in ("a", "b"):
        assert resode("twist", "digits_resnet8", "--out", f"{name}.safetensors").code == 0
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert resode("train", "quickstart", "--out", "plain", *TINY).code == 0
    assert resode("train", "quickstart", "--out", "on", *TINY, "--init", "a.safetensors").code == 0
    plain, on = (Run(tmp_path / name).read_experiment().data for name in ("plain", "on"))
    assert (plain.mean, plain.std) == (on.mean, on.std)


def test_a_twisted_recipe_goes_on_from_a_network_that_was_twisted_further(resode, tmp_path):
    stage = ("--set", "model.where=[1]")
    assert resode("train", "quickstart-twist", "--out", "one", *TINY, *stage).code == 0
    assert resode("twist", "one", "--stages", "2", "--out", "two.safetensors").code == 0
    answer = resode("train", "quickstart-twist", "--out", "on", *TINY, *stage, "--init", "two.safetensors")
    assert answer.code == 0, answer.err
    stages = {item.stage for item in twisted_convolutions(library.load(tmp_path / "on"))}
    assert stages == {1, 2}


def test_nothing_is_overwritten_without_force(resode, run, tmp_path):
    words = ("twist", run, "--out", "t.safetensors")
    assert resode(*words).code == 0
    before = (tmp_path / "t.safetensors").read_bytes()
    assert resode(*words, "--tie", "free").code == 2
    assert (tmp_path / "t.safetensors").read_bytes() == before
    assert resode(*words, "--tie", "free", "--force").code == 0
    own = tmp_path / "run" / "model.safetensors"
    assert resode("twist", own, "--out", own, "--force").code == 2
    assert resode("evaluate", run).code == 0
    assert resode("twist", "nowhere", "--out", "u.safetensors").code == 2
