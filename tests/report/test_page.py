"""The page of a run: its content, that it is self-contained, that nothing from a file becomes markup."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from resode import report
from resode.errors import InputError, IntegrityError, ResourceError
from tests.report.pages import HOSTILE, Page, assert_self_contained

MakeRun = Callable[..., Path]


def page(run: Path) -> Page:
    return Page(report.write(run).read_text())


def test_a_finished_run_shows_its_result(make_run: MakeRun) -> None:
    text = page(make_run()).text
    for part in (
        "he_resnet20 on cifar10",
        "12.50 % test error 5 of 40 images wrong",
        "8.75 % published test error He et al. 2016, table 6 this run: 3.75 points higher",
        "13.00 % validation error",
        "training images 400 validation images 100 test images 40 epochs 4",
        "tested once, at the end initial weights random seed 7 precision bf16, compiled test precision fp32",
        "parameters 269,722",
        "total time 7 min 01 s training time 6 min 40 s training images per second 430.5 peak memory 641 MB",
        "cat 80.0 % dog 4×",
        "memory 17.18 GB",
        "command resode train 'a b'",
        "5f1c8a90",
        "Skipped images: 1 train/cat/broken.png: not an image",
        "batch_size: 128",
        "8.3 to 8.8 % test error",
    ):
        assert part in text


def test_it_needs_nothing_but_itself(make_run: MakeRun) -> None:
    run = make_run()
    found = page(run)
    assert_self_contained(found, (run / "report.html").read_text())
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes
    assert found.tags.count("svg") == 3
    assert "prefers-color-scheme: dark" in (run / "report.html").read_text()


def test_hostile_names_stay_text(make_run: MakeRun) -> None:
    summary = {
        "status": HOSTILE,
        "name": HOSTILE,
        "model": HOSTILE,
        "test": {
            "top1_error": 25,
            "precision": HOSTILE,
            "per_class": {HOSTILE: 50, "b": 100},
            "confusion": [[1, 1], [0, 2]],
        },
        "data": {"name": HOSTILE, "fingerprint": HOSTILE, "skipped": [HOSTILE]},
        "published": {"top1_error": 1, "source": HOSTILE},
        "expected": HOSTILE,
        "precision": HOSTILE,
    }
    clean = HOSTILE.replace("\ud800", "?")
    experiment = {"about": {"summary": clean}, "batch_size": clean, "x": clean}
    run = make_run("<b>'a' $(x)", summary=summary, experiment=experiment, environment={HOSTILE: HOSTILE})
    found = page(run)
    source = (run / "report.html").read_text()
    assert_self_contained(found, source)
    assert found.text.count(" ".join(clean.split())) >= 12
    assert "<script" not in source
    assert str(7777 * 7777) not in found.text


def test_an_unfinished_run_says_where_it_stands(make_run: MakeRun) -> None:
    run = make_run(summary=None, epochs=2)
    found = page(run)
    assert "unfinished" in found.text
    assert "2 of 4 epoch about 3 min to go at the pace of the last epochs" in found.text
    assert "last checkpoint at iteration 1,408" in found.text
    assert "26.00 % validation error after epoch 2" in found.text
    assert f"resode train {run} --out {run} --resume" in found.text
    assert ("progress", "value", "2") in found.attributes
    assert found.tags.count("svg") == 3


def test_a_run_that_has_just_begun_has_a_page(make_run: MakeRun) -> None:
    found = page(make_run(summary=None, epochs=None, environment=None))
    assert "0 of 4 epoch no epoch is complete yet" in found.text
    assert "svg" not in found.tags


def test_an_evaluation_every_few_epochs_is_shown_with_its_epoch(make_run: MakeRun) -> None:
    rows = [{"epoch": 1, "train_accuracy": 50, "validation_accuracy": 60}, {"epoch": 2, "train_accuracy": 70}]
    text = page(make_run(summary=None, epochs=rows)).text
    assert "40.00 % validation error after epoch 1" in text


def test_without_validation_and_test_the_training_error_is_named_as_such(make_run: MakeRun) -> None:
    rows = [{"epoch": 1, "train_loss": 1.0, "train_accuracy": 60.0}]
    summary = {"train": {"loss": 1.0, "accuracy": 60.0}, "data": {"train": 500, "validation": 0, "test": 0}}
    text = page(make_run(summary=summary, epochs=rows)).text
    assert "40.00 % training error no validation images" in text
    assert "validation images none test images none" in text
    assert "Classes" not in text


def test_without_validation_the_curve_is_that_of_training(make_run: MakeRun) -> None:
    rows = [{"epoch": k, "train_loss": 1 / k, "train_accuracy": 100 - 50 / k} for k in (1, 2, 3)]
    run = make_run(epochs=rows)
    summary = json.loads((run / "summary.json").read_text()) | {"validation": None}
    (run / "summary.json").write_text(json.dumps(summary))
    text = page(run).text
    assert "validation error" not in text
    assert "12.50 % test error" in text


@pytest.mark.parametrize("missing", ["experiment", "environment", "epochs"])
def test_without_a_file_its_section_is_missing(make_run: MakeRun, missing: str) -> None:
    text = page(make_run(**{missing: None})).text
    assert "12.50 % test error" in text
    assert ("Resolved experiment" in text) == (missing != "experiment")
    assert ("A processor" in text) == (missing != "environment")
    assert ("Learning curves" in text) == (missing != "epochs")


def test_the_least_summary_is_enough(make_run: MakeRun) -> None:
    found = page(make_run(experiment=None, environment=None, epochs=None, summary={}))
    assert "run" in found.text


def test_many_classes_are_drawn(make_run: MakeRun) -> None:
    size = 30
    confusion = [
        [18 if i == j else 2 if j == (i + 1) % size else 0 for j in range(size)] for i in range(size)
    ]
    test = {
        "top1_error": 10,
        "samples": 600,
        "per_class": {f"c{i}": 90 for i in range(size)},
        "confusion": confusion,
    }
    found = page(make_run(summary={"test": test}))
    assert found.tags.count("svg") == 4
    assert "c3 classified as c4: 2 of 20" in found.text


def test_numbers_that_are_not_finite_do_not_stop_it(make_run: MakeRun) -> None:
    rows = [{"epoch": 1, "train_loss": "nan", "train_accuracy": "nan", "seconds": "inf"}]
    page(make_run(epochs=rows, summary=None))


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    first = report.write(run).read_bytes()
    os.utime(run / "summary.json", (1, 1))
    assert report.write(run, tmp_path / "other" / "page.html").read_bytes() == first
    assert not re.search(rb"0x[0-9a-f]{6,}", first)


def test_a_page_is_replaced_whole_or_not_at_all(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    out = report.write(run)
    assert out == run / "report.html"
    before, files = out.read_bytes(), sorted(run.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (run / "summary.json").unlink()
    files.remove(run / "summary.json")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        report.write(run)
    assert out.read_bytes() == before
    assert sorted(run.iterdir()) == files


def test_damage_and_wrong_places_are_refused_before_writing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(summary="{")
    with pytest.raises(IntegrityError):
        report.write(run)
    assert not (run / "report.html").exists()
    with pytest.raises(InputError, match="name a file"):
        report.write(make_run("good"), tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        report.write(tmp_path / "missing")
