"""Comparisons: runs are grouped by everything but their seed, paired, and never mixed in silence."""

import csv
import io
import json

import pytest

from resode.errors import InputError
from resode.report.comparison import compare, grouped, with_base
from resode.report.tables import COLUMNS, as_csv, as_markdown, cells, records

WIDE = {"model": {"name": "he_resnet20", "widths": [20, 40, 80]}}


def test_runs_that_differ_in_their_seed_are_one_arm(arm):
    plain, wide = arm("plain", {0: 8.0, 1: 9.0, 2: 10.0}), arm("wide", {2: 9.0, 1: 8.5, 7: 1.0}, **WIDE)
    groups = grouped([*plain, *wide])
    assert [len(group.runs) for group in groups] == [3, 3]
    first, second = compare(groups).rows
    assert first.name == "mine/resnet20"
    assert second.name == "mine/resnet20 (model.widths=[20, 40, 80])"
    assert first.seeds == (0, 1, 2)
    assert first.test.mean == pytest.approx(9)
    assert first.difference is None
    assert second.difference.seeds == (1, 2)
    assert second.difference.mean == pytest.approx(-0.75)
    assert first.multiply_adds == pytest.approx(40.55e6, rel=1e-3)
    assert second.multiply_adds > 1.4 * first.multiply_adds
    assert first.published == 8.75


def test_the_base_is_first_and_is_named_in_full_or_in_part(arm):
    groups = grouped([*arm("plain", {0: 8.0}), *arm("wide", {0: 9.0}, **WIDE)])
    plain, wide = groups
    assert with_base(groups, "model.widths") == with_base(groups, wide.name) == [wide, plain]
    assert with_base(groups, plain.name) == groups  # a name in full comes before a part of another
    with pytest.raises(InputError, match="base mine/: more than one arm of that name"):
        with_base(groups, "mine/")
    with pytest.raises(InputError, match=r"base deep: no arm of that name \('mine/resnet20', "):
        with_base(groups, "deep")


def test_a_folder_stands_for_the_runs_in_it(arm, tmp_path):
    arm("plain", {0: 8.0, 1: 9.0})
    assert [sorted(group.runs) for group in grouped([tmp_path])] == [[0, 1]]


def test_a_file_is_refused(arm):
    (path,) = arm("plain", {3: 8.0})
    with pytest.raises(InputError, match="does not record how it was trained"):
        grouped([path / "model.safetensors"])


def test_of_two_runs_with_the_same_seed_the_first_finished_one_stays(arm):
    (late,) = arm("late", {3: 8.0}, finished=False)
    (first,), (second,) = arm("first", {3: 8.0}), arm("second", {3: 9.0})
    (group,) = grouped([late, first, second, first])
    assert [run.path for run in group.runs.values()] == [first]
    assert [run.path for run in group.repeated] == [late, second]
    remarks = compare([group]).remarks
    assert f"{second}: excluded, the same experiment with the same seed 3 as {first}" in remarks
    assert len(remarks) == 2


def test_many_differences_of_protocol_fold_into_the_settings_that_differ(arm):
    other = {"epochs": 10, "batch_size": 64, "augment": {"flip": True, "crop": 2}}
    found = compare(grouped([*arm("plain", {0: 8.0}), *arm("other", {0: 9.0}, **other)]))
    assert found.folded
    assert found.brief == ("protocols differ in epochs, batch size, augmentation",)
    assert len(found.remarks) == 4
    assert "- protocols differ in epochs: 4" in as_markdown(found)
    assert "- protocols differ in epochs, batch size" in as_markdown(found, brief=True)
    few = compare(grouped([*arm("a", {0: 8.0}), *arm("b", {0: 9.0}, epochs=10)]))
    assert not few.folded
    assert few.brief == few.remarks


def test_arms_that_differ_in_many_settings_are_named_by_their_folders(arm):
    settings = {"epochs": 10, "batch_size": 64, "label_smoothing": 0.1, "precision": "fp32"}
    first, second = grouped([*arm("plain", {0: 8.0}), *arm("other", {0: 9.0}, **settings)])
    assert first.name.endswith(f"({next(iter(first.runs.values())).path.name})")
    assert second.name.endswith(f"({next(iter(second.runs.values())).path.name})")


@pytest.mark.parametrize(
    ("own", "remark"),
    [
        ({"epochs": 10}, "protocols differ in epochs"),
        ({"data": {"source": "cifar10", "validation": 0}}, "protocols differ in validation split"),
        ({"augment": {"flip": True}}, "protocols differ in augmentation"),
        ({"batch_size": 64}, "protocols differ in batch size"),
        (WIDE, None),
    ],
)
def test_mixed_protocols_are_reported(arm, own, remark):
    found = compare(grouped([*arm("plain", {0: 8.0}), *arm("other", {0: 9.0}, **own)]))
    assert len(found.rows) == 2
    assert [remark in text for text in found.remarks] == ([True] if remark else [])


def test_unfinished_runs_are_excluded_and_reported(arm):
    plain = arm("plain", {0: 8.0}) + arm("late", {1: 8.0}, finished=False)
    found = compare(grouped([*arm("never", {0: 1.0}, finished=False, **WIDE), *plain]))
    assert [(row.seeds, row.unfinished) for row in found.rows] == [((0,), 1), ((), 1)]
    assert sum("not finished, excluded" in text for text in found.remarks) == 2
    with pytest.raises(InputError, match="none of these runs is finished"):
        compare(grouped(arm("alone", {5: 8.0}, finished=False)))


def test_differences_on_the_validation_images(arm):
    groups = grouped([*arm("plain", {0: 8.0}), *arm("wide", {0: 1.0}, **WIDE)])
    assert compare(groups, "validation").rows[1].difference.mean == 0
    assert compare(groups, "test").rows[1].difference.mean == -7


def test_a_comparison_as_text(arm):
    errors = {0: 8.0, 1: 9.0, 2: 10.0}
    less = {seed: error - 1 - seed / 10 for seed, error in errors.items()}
    found = compare(grouped([*arm("plain", errors), *arm("wide", less, **WIDE)]))
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["n"] for row in rows] == ["3", "3"]
    assert float(rows[1]["difference"]) == pytest.approx(-1.1)
    assert tuple(rows[0]) == COLUMNS == tuple(records(found)[0])
    heads, (_, second) = cells(found)
    assert "evaluations" not in heads  # unknown
    shown = dict(zip(heads, second, strict=True))
    assert shown["test error"].startswith("7.90 \N{PLUS-MINUS SIGN} 0.90 % [")
    assert shown["difference to first"].startswith("-1.10 [-1.35, -0.85], p 0.0")
    text = as_markdown(found)
    assert text.splitlines()[1] == "|" + "---|" * len(heads)
    assert "95 %" in text


# ---------------------------------------------------------------- what each number measures


def test_a_published_error_of_the_best_epoch_is_marked(arm):
    plain, (other,) = arm("plain", {0: 8.0}), arm("other", {0: 9.0}, name="other", **WIDE)
    path = other / "summary.json"
    published = {"top1_error": 8.27, "source": "liuyao12", "measured": "best epoch"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "published": published}))
    found = compare(grouped([*plain, other]))
    heads, rows = cells(found)
    assert [row[heads.index("published")] for row in rows] == ["8.75 %", "8.27 % (best epoch)"]
    assert [record["published_as"] for record in records(found)] == [None, "best epoch"]


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("image size", {"data": {"source": "cifar10", "validation": 100, "image_size": 16}}),
        ("gradient clipping", {"clip_norm": 1.0}),
        ("loss", {"loss": "focal [given in Python]"}),
    ],
)
def test_a_difference_of_protocol_is_named(arm, setting, values):
    found = compare(grouped([*arm("plain", {0: 8.0}), *arm("other", {0: 9.0}, **values)]))
    assert [name for name, _ in found.protocol] == [setting]


def test_multiply_adds_that_depend_on_the_images_are_not_compared(arm):
    ode = {"name": "neural_ode", "widths": [4, 4, 4]}
    found = compare(grouped([*arm("plain", {0: 8.0}), *arm("ode", {0: 9.0}, model=ode)]))
    assert [row.multiply_adds is None for row in found.rows] == [False, True]
    (line,) = [line for line in found.remarks if "multiply-adds" in line]
    assert "depend on the images (Adaptive dopri5 (rtol 0.01, atol 0.01)); evaluations are those of" in line
