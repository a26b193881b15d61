"""No image is lost silently: train, evaluate and predict treat alike what they cannot read."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import resode as library
from tests.cli.conftest import TINY


@pytest.fixture
def photos(tmp_path):
    """Some digits of three classes in `train/<class>/` and `test/<class>/`."""
    train = library.load_data("digits").train
    for number in range(3):
        for split, indices in (("train", slice(0, 6)), ("test", slice(6, 9))):
            folder = tmp_path / "photos" / split / f"digit {number}"
            folder.mkdir(parents=True)
            for index in np.flatnonzero(train.labels == number)[indices]:
                Image.fromarray(train.pixels[index][:, :, 0]).save(folder / f"{index}.png")
    return tmp_path / "photos"


def train(resode, photos, *words):
    return resode("train", "quickstart", "--data", photos, "--out", "run", *TINY, *words)


def test_train_evaluate_and_predict_treat_bad_images_alike(resode, photos):
    """A broken link stops each of them; skipped, it is named by each."""
    for split in ("train", "test"):
        (photos / split / "digit 1" / "gone.png").symlink_to("nowhere.png")
    bad = {split: photos / split / "digit 1" / "gone.png" for split in ("train", "test")}
    why = "cannot be read (No such file or directory)"
    refused = train(resode, photos)
    assert (refused.code, refused.lines[-1]) == (
        2, f"resode: {bad['train']} {why}; --on-bad-image skip drops it"
    )  # fmt: skip
    trained = train(resode, photos, "--on-bad-image", "skip")
    assert trained.code == 0, trained.err
    assert f"skipped: {bad['train']} {why}" in trained.lines
    stopped = resode("evaluate", "run", "--on-bad-image", "error")
    assert (stopped.code, stopped.lines[-1]) == (
        2, f"resode: {bad['train']} {why}; --on-bad-image skip drops it"
    )  # fmt: skip
    predicted = resode("predict", "run", photos / "test")
    assert predicted.code == 2
    assert predicted.lines[-1] == f"resode: {bad['test']} {why}"
    assert predicted.out.count("\n") == 9
    skipped = resode("predict", "run", photos / "test", "--on-bad-image", "skip")
    assert (skipped.code, skipped.lines[-1]) == (0, f"skipped: {bad['test']} {why}")


def test_an_evaluation_obeys_what_its_run_recorded(resode, photos, tmp_path):
    """Named by the run, its weights file or its data; for other data an unreadable image is an error."""
    (photos / "test" / "digit 1" / "gone.png").symlink_to("nowhere.png")
    assert train(resode, photos, "--on-bad-image", "skip").code == 0
    for net in ("run", "run/model.safetensors", "run/checkpoints/2"):
        answer = resode("evaluate", net, "--json")
        assert answer.code == 0, answer.err
        assert (json.loads(answer.out)["skipped"], json.loads(answer.out)["samples"]) == (1, 9)
        assert any(line.startswith("skipped: ") and "gone.png" in line for line in answer.lines)
    shutil.copy("run/model.safetensors", "copy.safetensors")
    assert resode("evaluate", "copy.safetensors").code == 2
    assert resode("evaluate", "copy.safetensors", "--data", "run").code == 0
    shutil.copytree(photos, tmp_path / "others", symlinks=True)
    assert resode("evaluate", "run", "--data", "others").code == 2


def test_predict_follows_links_and_refuses_loops(resode, photos, tmp_path):
    assert train(resode, photos).code == 0
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "photos").symlink_to(photos / "test")
    found = json.loads(resode("predict", "run", "links", "--json").out)
    assert len(found) == 9
    assert {record["state"] for record in found} == {"finished"}
    (photos / "test" / "digit 0" / "loop").symlink_to(photos)
    loop = resode("predict", "run", "links")
    assert loop.code == 2
    assert "links/photos/digit 0/loop is a link to" in loop.err


def test_names_that_are_not_utf8_work_from_data_to_report(resode, photos, tmp_path):
    """A folder, a class and a file whose names are Latin-1, and a damaged one."""
    strange = tmp_path / "ph\udcf6tos"
    try:
        photos.rename(strange)
    except OSError:
        pytest.skip("the file system has UTF-8 names alone")
    for split in ("train", "test"):
        (strange / split / "digit 1").rename(strange / split / "d\udce9j\udce0")
    image = next((strange / "test" / "d\udce9j\udce0").iterdir())
    image.rename(image.with_name("\udcff.png"))
    (image.parent / "b\udce4d.png").write_text("no image")
    for _ in range(2):  # decoded, and cached
        refused = train(resode, strange)
        assert refused.code == 2
        assert "b\\xe4d.png is not an image" in refused.err
    trained = train(resode, strange, "--on-bad-image", "skip", "--set", "evaluation.every=1")
    assert trained.code == 0, trained.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert "d\\xe9j\\xe0" in summary["test"]["per_class"]
    assert "b\\xe4d.png is not an image" in summary["data"]["skipped"][0]
    answer = resode("evaluate", "run", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["top1_error"] == summary["test"]["top1_error"]
    predicted = resode("predict", "run", strange / "test", "--json")
    assert predicted.code == 0, predicted.err
    files = [record["file"] for record in json.loads(predicted.out)]
    assert any(file.endswith("ph\\xf6tos/test/d\\xe9j\\xe0/\\xff.png") for file in files)
    assert resode("predict", "run", strange / "test").code == 0
    assert resode("report", "run").code == 0
    assert "d\\xe9j\\xe0" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert resode("export", "run", "--out", "net.safetensors").code == 0
    assert "d\\xe9j\\xe0" in library.load(tmp_path / "net.safetensors").preprocessing.classes
    assert train(resode, strange, "--on-bad-image", "skip", "--resume").code == 0


def test_a_folder_of_test_images_alone_is_evaluated(resode, photos):
    assert train(resode, photos).code == 0
    whole = json.loads(resode("evaluate", "run", "--json").out)
    shutil.rmtree(photos / "train")
    answer = resode("evaluate", "run", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out) == whole
    shutil.rmtree(photos / "test" / "digit 1")  # classes are found by name, whichever there are
    fewer = resode("evaluate", "run", "--json")
    assert fewer.code == 0, fewer.err
    assert json.loads(fewer.out)["samples"] == 6
    assert "has 2 of the network's 3 classes" in fewer.err
    refused = resode("train", "quickstart", "--data", photos, "--out", "other", *TINY)
    assert refused.code == 2
    assert "holds test images alone (test/); training needs train/<class>/, too" in refused.err


def test_val_alone_is_called_validation(resode, photos):
    (photos / "test").rename(photos / "val")
    trained = train(resode, photos)
    assert trained.code == 0, trained.err
    assert f"{photos} has no test/: its test images are those called validation" in trained.lines
    answer = resode("evaluate", "run")
    assert answer.code == 0, answer.err
    assert "(validation, 9 images, fp32)" in answer.out
    assert json.loads(resode("evaluate", "run", "--json").out)["split"] == "validation"
