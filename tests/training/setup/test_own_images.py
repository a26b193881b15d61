"""Images of one's own: which settings follow from them, and which notes the user gets."""

import json

import numpy as np
import pytest

from resode import inference
from resode.errors import InputError
from resode.training import Experiment
from resode.training.launch import train
from resode.training.setup.preparation import prepare
from tests.data.conftest import random_pixels, write_images

SETTINGS = {"model.widths": [4, 4, 8], "epochs": 1, "precision": "fp32", "data.validation": 0.1}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A flat folder of two classes with 20 colour images each, of different sizes."""
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "photos" / name / "a", random_pixels(10, 40, seed=seed))
        write_images(tmp_path / "photos" / name, random_pixels(10, 50, seed=seed + 2))
    return tmp_path / "photos"


def prepared(photos, **settings):
    return prepare(Experiment.from_recipe("quickstart", {"data.source": str(photos), **SETTINGS, **settings}))


def test_unequal_images_get_the_size_that_the_network_is_made_for(photos):
    setup = prepared(photos)
    assert setup.data.shape == (3, 8, 8)
    assert setup.experiment.data.image_size == 8
    assert setup.experiment.data.split.test == 0.2
    notes = "\n".join(setup.notes)
    assert "8 of its 40 images, 20 % of each class, are its test images (data.split.seed=0)" in notes
    assert "images of different sizes: scaled and cropped to 8x8" in notes
    assert "the images are in colour (3x8x8), the recipe is made for 1x8x8" in notes
    assert "14 training images of class 'cat'" in notes
    assert "images of 3x8x8 in 2 classes; the network takes" in notes
    again = prepare(setup.experiment)
    assert again.experiment == setup.experiment
    assert again.data.dataset.fingerprint == setup.data.dataset.fingerprint


def test_large_images_are_said_to_cost_more(photos):
    notes = "\n".join(prepared(photos, **{"data.image_size": 32}).notes)
    assert "have 3x32x32, the recipe is made for 1x8x8: a step costs 16 times as much" in notes
    assert "--set data.image_size=8 scales them" in notes


def test_the_data_of_a_recipe_needs_no_note():
    setup = prepare(Experiment.from_recipe("quickstart", SETTINGS))
    assert setup.notes == ()


def test_a_count_held_out_of_too_few_names_the_fraction_to_type(photos):
    with pytest.raises(
        InputError, match=r"of 32 training images is impossible.* --set data\.validation=0\.1"
    ):
        prepared(photos, **{"data.validation": 5000})
    notes = "\n".join(prepared(photos, **{"data.validation": 20}).notes)
    assert "20 of 32 images are held out; --set data.validation=0.1" in notes


def test_evaluate_uses_the_test_images_of_the_run(photos, tmp_path, monkeypatch):
    chosen = {"data.split.test": 0.5, "data.split.seed": 3}
    experiment = Experiment.from_recipe("quickstart", {"data.source": str(photos), **SETTINGS, **chosen})
    result = train(None, experiment, out=tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "summary.json").read_text())
    monkeypatch.chdir(tmp_path)
    for data in (None, "photos"):
        found = inference.evaluate(tmp_path / "run", data=data)
        assert found.scores.samples == 20 == recorded["data"]["test"]
        assert found.scores.top1_error == pytest.approx(recorded["test"]["top1_error"])
        assert any("50 % of each class" in note for note in found.notes)
    assert np.isfinite(result.test_error)
