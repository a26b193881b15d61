"""A finished run agrees with the hashes in its summary or is refused, as is one with edited settings."""

import json
import random
import shutil

import pytest

import resode
from resode import report
from resode.errors import InputError, IntegrityError
from resode.inference import evaluate
from resode.training.launch import train
from resode.training.records import checkpoints, reader, seal
from tests.conftest import DIGITS_IN_A_FLASH


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    experiment = resode.Experiment.from_recipe("quickstart", DIGITS_IN_A_FLASH)
    folder = tmp_path_factory.mktemp("sealed") / "run"
    train(None, experiment, out=folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_finished_run_is_sealed_and_may_move(run):
    summary = json.loads((run / "summary.json").read_text())
    assert sorted(summary["files"]) == sorted(seal.SEALED)
    assert reader.read(run).sealed
    assert report.write(run).is_file()


@pytest.mark.parametrize("name", [*seal.SEALED, "summary.json"])
def test_no_flipped_bit_of_a_finished_run_is_silent(run, name):
    file = run / name
    content, choice = file.read_bytes(), random.Random(0)
    right = reader.read(run)
    for _ in range(40):
        harmed, place = bytearray(content), choice.randrange(len(content))
        harmed[place] ^= 1 << choice.randrange(8)
        file.write_bytes(harmed)
        try:
            assert reader.read(run).summary == right.summary  # a bit that means nothing, such as white space
        except (IntegrityError, InputError):
            continue
        assert json.loads(file.read_bytes()) == json.loads(content)


def test_changed_files_are_refused_by_report_and_evaluate(run):
    metrics = run / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("0.", "0.1", 1))
    for use in (report.write, evaluate):
        with pytest.raises(IntegrityError, match=r"metrics.csv: is not the file with which the run finished"):
            use(run)


def test_scores_must_agree_with_themselves(run):
    def edited(**scores):
        summary = json.loads((run / "summary.json").read_text())
        for key in ("files", "sha256"):
            summary.pop(key, None)
        return {**summary, "test": {**summary["test"], **scores}}

    right = edited()["test"]
    for scores, message in (
        ({"top1_accuracy": right["top1_accuracy"] - 1}, "do not add up to 100"),
        ({"top1_error": right["top1_error"] - 1, "top1_accuracy": right["top1_accuracy"] + 1}, "contradicts"),
        ({"samples": right["samples"] + 1}, "the confusion matrix counts 360"),
    ):
        (run / "summary.json").write_text(json.dumps(edited(**scores)))
        with pytest.raises(IntegrityError, match=message):
            reader.read(run)
        (run / "summary.json").write_text(json.dumps({**edited(), "test": right}))
    assert not reader.read(run).sealed  # as earlier versions wrote it


def test_a_resume_with_an_edited_experiment_is_refused_by_key(run):
    (run / "summary.json").unlink()
    file = run / "experiment.yaml"
    text = file.read_text()
    file.write_text(text.replace("batch_size: 256", "batch_size: 128", 1))
    assert file.read_text() != text
    with pytest.raises(IntegrityError) as error:
        train(None, resode.Experiment.from_recipe(str(run)), out=run, resume=True)
    assert error.value.messages[0].endswith("experiment.yaml: batch_size was 256, now it is 128")
    assert f"resode train {run} --init {run} --out NEW" in error.value.messages[1]
    file.write_text(text)
    train(None, resode.Experiment.from_recipe(str(run)), out=run, resume=True)


def test_a_run_of_a_version_without_some_setting_goes_on(run):
    (run / "summary.json").unlink()
    checkpoint, _ = checkpoints.newest(run / "checkpoints")
    state = json.loads(json.dumps(checkpoint.state))
    del state["experiment"]["about"]["differs"], state["experiment"]["data"]["on_bad_image"]
    checkpoints.write(
        run / "checkpoints",
        state["iteration"],
        lambda file: shutil.copy(checkpoint.path / checkpoints.MODEL, file),
        checkpoint.training,
        state,
        keep=1,
    )
    train(None, resode.Experiment.from_recipe(str(run)), out=run, resume=True)
    assert (run / "summary.json").is_file()
