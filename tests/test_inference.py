"""Frozen networks: the logits of the network, with fewer operations, for batches of any size."""

import json

import pytest
import torch
from PIL import Image

from resode.cli import main
from resode.inference import Frozen
from resode.models import create
from resode.weights import Card, Preprocessing, Specification, save

PARABOLIC = {"name": "parabolic", "norm": "batch"}
MODELS = {
    "classical": {"name": "he_resnet8", "widths": (4, 4, 8)},
    "dynamic": {
        "name": "dynamic",
        "stages": [
            {"width": 4, "field": {"name": "parabolic", "norm": "batch"}, "integrator": "rk4", "states": 2}
        ],
    },
}


def trained(model):
    """With statistics that are no zeros and ones."""
    torch.manual_seed(0)
    network = create(**model)
    for _ in range(3):
        network(1 + torch.randn(8, 3, 8, 8))
    return network.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("model", MODELS)
def test_frozen_logits_are_those_of_the_network(model):
    network = trained(MODELS[model])
    frozen = Frozen(network)
    for size in (4, 3, 9):  # the first decides, one is filled up, one is divided
        x = torch.randn(size, 3, 8, 8)
        with torch.inference_mode():
            torch.testing.assert_close(frozen(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_is_evaluated_and_predicted_frozen_is_the_same(tmp_path, capsys, monkeypatch):
    network = create("digits_resnet8", widths=(4, 4, 8))
    network(torch.rand(64, 1, 8, 8))
    file = tmp_path / "net.safetensors"
    shape = Preprocessing(mean=(0.3,), std=(0.4,), size=(8, 8), channels=1, classes=tuple("0123456789"))
    made = Specification("digits_resnet8", {"widths": [4, 4, 8]})
    save(network.eval(), file, Card(made, shape, {"data": "digits"}))
    image = tmp_path / "image.png"
    Image.new("L", (8, 8), 100).save(image)
    asked, logits = [], Frozen.forward
    monkeypatch.setattr(Frozen, "forward", lambda self, x: asked.append(len(x)) or logits(self, x))

    def said(*words):
        with pytest.raises(SystemExit) as exit_:
            main([*words, "--json"])
        assert not exit_.value.code
        return json.loads(capsys.readouterr().out)

    plain, first = said("evaluate", str(file)), said("predict", str(file), str(image))
    assert not asked
    frozen = said("evaluate", str(file), "--compile", "on")
    assert asked == [360]
    half = said("evaluate", str(file), "--compile", "on", "--precision", "bf16")
    assert asked == [360, 360]
    assert half["precision"] == "bf16"
    assert half["loss"] == pytest.approx(plain["loss"], rel=1e-2)
    asked.pop()
    again = said("predict", str(file), str(image), "--compile", "on")
    assert asked == [360, 1]
    assert again[0]["probability"] == pytest.approx(first[0]["probability"], abs=1e-4)
    assert frozen["samples"] == plain["samples"]
    assert frozen["top1_error"] == pytest.approx(plain["top1_error"], abs=0.3)
    assert frozen["loss"] == pytest.approx(plain["loss"], rel=1e-4)
