"""What a recipe publishes is shown beside runs that keep to it, and beside no others."""

import json
from pathlib import Path

import pytest
import yaml

from resode import report
from resode.training import Experiment
from resode.training.records.departures import departures, holding, not_its_own
from resode.training.records.reader import read


def recorded(recipe, **overrides):
    return Experiment.from_recipe(recipe, overrides).model_dump(mode="json")


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ({}, ()),
        ({"seed": 3, "device": "cpu", "precision": "bf16", "compile": False, "evaluation.every": 5}, ()),
        ({"data.mean": [0.5] * 3, "data.std": [0.2] * 3, "model.classes": 10, "model.in_channels": 3}, ()),
        ({"epochs": 10}, ("epochs",)),
        ({"model.widths": [4, 4, 8]}, ("model.widths",)),
        ({"data.validation": 0, "optimizer.lr": 0.05}, ("data.validation", "optimizer.lr")),
        ({"init.path": "other.safetensors"}, ("init",)),
        ({"average.decay": 0.9}, ("average",)),
        ({"box.linear": 1.0, "optimizer.decay_biases": True}, ("optimizer.decay_biases", "box")),
    ],
)
def test_departures_are_the_settings_that_change_a_result(overrides, keys):
    assert departures(recorded("he2016/resnet20", **overrides)) == keys


def test_records_without_later_keys_and_recipes_of_ones_own_do_not_depart():
    whole = recorded("he2016/resnet20")
    assert departures({key: whole[key] for key in ("name", "epochs", "batch_size")}) == ()
    assert departures({**whole, "name": "mine", "epochs": 1}) == ()
    assert departures({}) == ()


def test_a_normalisation_that_the_recipe_sets_is_a_setting_like_others():
    whole = recorded("dynamicblocks/rk4")
    assert departures(whole) == ()
    data = {**whole["data"], "mean": [0.49, 0.48, 0.45]}
    assert departures({**whole, "data": data}) == ("data.mean",)


def test_what_a_record_does_not_name_was_at_its_default():
    whole = recorded("dynamicblocks/rk4")
    optimizer, model = dict(whole["optimizer"]), dict(whole["model"])
    del optimizer["decay_biases"], model["initial"]
    assert departures({**whole, "optimizer": optimizer}) == ("optimizer.decay_biases",)
    assert departures({**whole, "model": model}) == ("model.initial",)


RECORDED = Path(__file__).parents[3] / "results" / "dynamicblocks-rk4"


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the records are not here")
def test_a_run_of_an_older_form_of_its_recipe_says_so():
    found = read(RECORDED)
    assert found.result.published is None
    assert {"epochs", "data.mean", "box", "model.initial"} <= set(departures(found.experiment))


@pytest.fixture
def own(tmp_path):
    """An experiment from a file of the user's."""

    def read_file(text, name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return Experiment.from_recipe(tmp_path / name)

    return read_file


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ("seed: 3", True),
        ("name: he2016/resnet20", True),
        ("epochs: 5", False),
        ("optimizer: {lr: 0.01}", False),
        ("data: {source: cifar100}", False),
        ("epochs: 5\nname: he2016/resnet20", False),
        ("epochs: 5\nabout: {summary: mine}", False),
        ("epochs: 5\nabout: {published: {top1_error: 9.5, source: My thesis}, expected: mine}", True),
    ],
)
def test_a_file_with_a_base_has_its_figure_where_it_keeps_to_it(own, change, holds):
    experiment = holding(own(f"base: he2016/resnet20\n{change}\n"))
    assert (experiment.about.published is not None) == holds
    assert bool(experiment.about.expected) == holds
    assert experiment.epochs == (5 if "epochs" in change else 182)


def test_a_copy_of_a_recipe_has_its_figure_until_it_is_changed(own):
    copied = Experiment.from_recipe("fast/resnet20-cpu").to_yaml()
    assert holding(own(copied)).about.published is not None
    assert holding(own(copied.replace("fast/resnet20-cpu", "mine", 1))).about.published is not None
    for name in ("fast/resnet20-cpu", "mine"):
        renamed = copied.replace("name: fast/resnet20-cpu", f"name: {name}")
        found = holding(own(renamed.replace("epochs: 22", "epochs: 3"))).about
        assert (found.published, found.expected, found.cost, found.command) == (None, "", "", "")
        assert found.source


def test_the_header_of_a_recipe_holds_for_it():
    """A recipe based on another one has figures of its own."""
    for recipe in ("fast/resnet20-cpu", "akamaster/resnet32", "quickstart"):
        assert not_its_own(recorded(recipe)) == ()


@pytest.fixture
def run(tmp_path):
    """Write a run of a recipe."""

    def write(recipe, *, finished=True, end=None, **overrides):
        path = tmp_path / "run"
        path.mkdir()
        experiment = recorded(recipe, **overrides)
        (path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
        about = {key: experiment["about"][key] for key in ("published", "expected")}
        if finished:
            summary = {"status": "finished", "name": recipe, "epochs": experiment["epochs"], **about}
            (path / "summary.json").write_text(json.dumps(summary))
        if end is not None:
            (path / "ended.json").write_text(json.dumps(end))
        return path

    return write


def test_a_full_run_is_not_said_to_be_missing(run):
    path = run("he2016/resnet32")
    assert read(path).result.expected == "the published error"
    assert read(path).result.published.top1_error == 7.51
    text = report.write(path).read_text()
    assert "Expected result of this recipe: the published error</p>" in text
    assert "not run in full here yet</p>" not in text
    assert "7.51" in text


@pytest.mark.parametrize("finished", [True, False])
def test_a_shorter_run_shows_neither_the_published_error_nor_the_summary_of_its_recipe(run, finished):
    path = run("he2016/resnet32", finished=finished, epochs=2)
    text = report.write(path).read_text().partition("Provenance")[0]
    assert "The recipe he2016/resnet32 with other settings: epochs" in text
    assert "7.51" not in text
    assert "by the paper's recipe" not in text
    assert "Expected result" not in text


@pytest.mark.parametrize("status", ["stopped", "diverged"])
def test_reports_say_how_a_run_ended(run, status):
    path = run("quickstart", finished=False, end={"status": status, "reason": "for a reason"})
    assert read(path).result.status == status
    assert not read(path).finished
    text = report.write(path).read_text()
    assert f'<span class="status">{status}</span>' in text
    assert "for a reason" in text
    assert ("--resume" in text) == (status == "stopped")


def test_a_report_names_the_initial_weights(run):
    path = run("quickstart", **{"init.path": "start.safetensors"})
    assert "start.safetensors" in report.write(path).read_text().partition("Provenance")[0]


def test_a_run_that_ended_early_has_no_published_error_beside_it(run):
    path = run("he2016/resnet32")
    summary = json.loads((path / "summary.json").read_text())
    stopped = {"status": "stopped", "stopped": {"epoch": 3, "reason": "enough"}}
    (path / "summary.json").write_text(json.dumps({**summary, **stopped}))
    assert (read(path).result.published, read(path).result.expected) == (None, None)
    (path / "summary.json").unlink()
    (path / "ended.json").write_text(json.dumps({"status": "diverged", "reason": "NaN"}))
    assert read(path).result.published is None
