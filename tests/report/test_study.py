"""The page of a study: its content, and that it is self-contained."""

import json
import re

import pytest

from resode import report
from resode.errors import InputError
from resode.report.scatter import pareto
from tests.report.conftest import SUMMARY
from tests.report.pages import HOSTILE, Page, assert_self_contained

WIDE = {"model": {"name": "he_resnet20", "widths": [20, 40, 80]}}


def pages(folder):
    path = report.write_study(report.read_study(folder))
    return Page(path.read_text()), path.read_text()


def with_confusion(run, confusion):
    summary = json.loads((run / "summary.json").read_text())
    images, right = sum(map(sum, confusion)), sum(row[i] for i, row in enumerate(confusion))
    scores = {"top1_error": 100 * (1 - right / images), "samples": images, "per_class": None}
    summary["test"] = {**SUMMARY["test"], "top1_accuracy": None, **scores, "confusion": confusion}
    (run / "summary.json").write_text(json.dumps(summary))


def test_arms_stand_side_by_side(arm, tmp_path):
    arm("plain", {0: 8.0, 1: 9.0, 2: 10.0})
    arm("wide", {0: 7.0, 1: 8.0, 2: 8.5}, **WIDE)
    found, source = pages(tmp_path)
    for part in (
        "arms 2 seeds 0, 1, 2 data cifar10 validation split 100 epochs 4 batch size 128 precision bf16",
        "Test error of the last epoch",
        "mine/resnet20 (model.widths=[20, 40, 80])",
        "9.00 ± 1.00 % [6.52, 11.48]",
        "-1.17 [-1.88, -0.45], p 0.02",
        "dashed marks are published errors",
        "Test error against multiply-adds of an image",
        "Validation error",
        "Training loss",
        "plain-0",
        "A processor",
        f"resode compare {tmp_path}",
    ):
        assert part in found.text
    assert_self_contained(found, source)
    dots = source.count('<circle class="dot"')
    assert dots == 6 + 2  # a run each, and each arm against the one cost in which they differ
    assert report.write_study(report.read_study(tmp_path)).read_text() == source


def test_the_front_is_what_no_other_beats():
    points = [(1.0, 9.0), (2.0, 8.0), (2.0, 8.5), (3.0, 8.0), (4.0, 5.0)]
    assert pareto(points) == {0, 1, 4}
    assert pareto([(1.0, 1.0), (1.0, 1.0)]) == {0, 1}


def test_confusions_are_summed_over_seeds(arm, tmp_path):
    first, second = arm("plain", {0: 12.5, 1: 25.0})
    with_confusion(first, [[16, 4], [1, 19]])
    with_confusion(second, [[12, 8], [2, 18]])
    found, _ = pages(tmp_path)
    assert "Confusion matrix of mine/resnet20" in found.text
    assert "0 28 12 1 3 37" in found.text
    assert "0 30.0 % 1 7.5 %" in found.text  # errors of the classes


def test_unfinished_runs_are_reported(arm, tmp_path):
    arm("plain", {0: 8.0, 1: 9.0})
    arm("late", {2: 9.0}, finished=False)
    found, _ = pages(tmp_path)
    assert "2 of 3 runs finished" in found.text
    assert "1 of 3 runs not finished, excluded" in found.text
    assert "4 of 4" in found.text


def test_nothing_finished_is_a_page_of_curves(arm, tmp_path):
    arm("late", {0: 9.0, 1: 9.5}, finished=False)
    found, _ = pages(tmp_path)
    assert "0 of 2 runs finished" in found.text
    assert "Learning curves" in found.text
    assert "Accuracy against cost" not in found.text


def test_a_study_that_selects_shows_validation_errors(arm, tmp_path):
    arm("plain", {0: 8.0})
    (tmp_path / "study.yaml").write_text("name: rates\nabout: Which rate?\nchoose: validation\n")
    found, _ = pages(tmp_path)
    assert "rates Which rate?" in found.text
    assert "Validation error of the last epoch" in found.text


def test_mixed_protocols_are_reported(arm, tmp_path):
    arm("plain", {0: 8.0})
    arm("long", {0: 7.0}, epochs=10)
    found, _ = pages(tmp_path)
    assert "epochs differs" in found.text
    assert "protocols differ in epochs: 10 (mine/resnet20 (epochs=10)); 4 (mine" in found.text


def test_hostile_names_stay_text(arm, tmp_path):
    clean = HOSTILE.replace("\ud800", "?")
    arm("plain", {0: 8.0}, name=clean)
    arm("wide", {0: 7.0}, name=clean, **WIDE)
    (tmp_path / "study.yaml").write_text(json.dumps({"name": clean, "about": clean}))
    found, source = pages(tmp_path)
    assert_self_contained(found, source)
    assert "49,284" not in found.text
    assert " ".join(clean.split()) in found.text


def test_a_directory_as_output_is_refused(arm, tmp_path):
    arm("plain", {0: 8.0})
    with pytest.raises(InputError, match="a directory; name a file"):
        report.write_study(report.read_study(tmp_path), tmp_path)


def test_a_run_is_no_study(arm, tmp_path):
    (run,) = arm("plain", {0: 8.0})
    assert report.is_study(tmp_path)
    assert not report.is_study(run)
    assert not report.is_study(tmp_path / "nothing")


def test_thirty_arms_look_different(arm, tmp_path):
    for place in range(30):
        arm(f"arm{place}", {0: 8.0 + place}, batch_size=16 + place)
    _, source = pages(tmp_path)
    assert len(set(re.findall('<g class="(arm.*?)"', source))) == 30


def test_what_is_missing_is_reported(arm, tmp_path):
    arm("base", {0: 8.0, 1: 9.0})
    (_, untested) = arm("half", {0: 7.0, 1: 7.5}, batch_size=64)
    arm("other", {5: 7.0}, batch_size=32)
    summary = json.loads((untested / "summary.json").read_text())
    (untested / "summary.json").write_text(json.dumps({**summary, "test": None}))
    environment = json.loads((untested / "environment.json").read_text())
    (untested / "environment.json").write_text(json.dumps({**environment, "threads": 7}))
    found, _ = pages(tmp_path)
    assert "mine/resnet20 (batch_size=64): 1 of 2 finished runs have no test error" in found.text
    assert (
        "(batch_size=32): shares no seed with mine/resnet20 (batch_size=128), so no difference" in found.text
    )
    assert "times and memory come from different machines: " in found.text
    assert "mine/resnet20 (batch_size=64) 1 7.00 %" in found.text  # n counts the runs with a test error


def test_arms_of_one_name_also_show_their_folders(arm, tmp_path):
    first, _ = arm("a", {0: 8.0, 1: 9.0})
    (tmp_path / "arms.json").write_text(
        json.dumps({first.name: "mine/resnet20"})
    )  # the study file has fewer arms now
    groups = report.read_study(tmp_path).groups
    assert [group.name for group in groups] == ["mine/resnet20", f"mine/resnet20 [{tmp_path}]"]
    _, source = pages(tmp_path)
    for error in ("8.00 %", "9.00 %"):
        assert source.count(f"seed {0 if error.startswith('8') else 1}: {error}</title>") == 1


def test_a_curve_is_the_mean_of_the_same_seeds_throughout(arm, tmp_path):
    """A seed that leaves half-way would bend the mean."""
    from resode.report import curves

    arm("a", {0: 8.0})
    arm("b", {1: 9.0}, finished=False)
    (group,) = report.read_study(tmp_path).groups
    error, *_ = curves.of_groups([group], {group.name: "arm0"})
    assert error.svg.find(".//path[@class='band']") is None  # the finished one alone


def test_garbage_in_the_study_file_does_not_stop_the_page(arm, tmp_path):
    arm("plain", {0: 8.0})
    for text in ("about: 2020-13-45", "[" * 5000):
        (tmp_path / "study.yaml").write_text(text)
        assert "8.00 %" in pages(tmp_path)[0].text
