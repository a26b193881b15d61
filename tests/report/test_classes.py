"""Accuracy by class and the confusion matrix."""

import pytest

from resode.report import classes
from resode.training.records.reader import EvaluationRecord


def test_the_hardest_class_comes_first_with_its_most_frequent_mistake() -> None:
    result = EvaluationRecord(
        top1_error=20,
        per_class={"ant": 90, "bee": 70, "cow": 80},
        confusion=((9, 1, 0), (0, 7, 3), (1, 1, 8)),
    )
    rows = classes.rows(result)
    assert [(row.name, row.accuracy, row.mistaken_for, row.times) for row in rows] == [
        ("bee", 70, "cow", 3),
        ("cow", 80, "ant", 1),
        ("ant", 90, "bee", 1),
    ]


def test_a_class_without_images_has_no_accuracy() -> None:
    with_counts = EvaluationRecord(top1_error=0, per_class={"a": 100, "b": None}, confusion=((4, 0), (0, 0)))
    assert [(row.name, row.mistaken_for) for row in classes.rows(with_counts)] == [("a", "")]
    assert [
        row.name for row in classes.rows(EvaluationRecord(top1_error=0, per_class={"a": 100, "b": None}))
    ] == ["a"]


def test_classes_without_names_are_numbered() -> None:
    assert classes.names(EvaluationRecord(top1_error=0, confusion=((1, 0), (0, 1)))) == ("0", "1")


def test_the_matrix_is_shaded_by_the_share_of_the_true_class() -> None:
    matrix = classes.matrix(EvaluationRecord(top1_error=25, confusion=((75, 25), (0, 0))))
    assert matrix is not None
    right, wrong = matrix.rows[0]
    assert (right.kind, right.shade) == ("right", 0.75)
    assert (wrong.kind, wrong.shade) == ("wrong", 0.5)
    assert wrong.text == "0 classified as 1: 25 of 100"
    assert [cell.shade for cell in matrix.rows[1]] == [0, 0]
    assert len(matrix.filled) == 2


@pytest.mark.parametrize(
    ("size", "drawn", "written"), [(25, True, True), (26, True, False), (201, False, False)]
)
def test_large_matrices_are_drawn_and_huge_ones_are_not(size: int, drawn: bool, written: bool) -> None:
    eye = tuple(tuple(int(i == j) for j in range(size)) for i in range(size))
    matrix = classes.matrix(EvaluationRecord(top1_error=0, confusion=eye))
    assert (matrix is not None) == drawn
    assert (matrix is not None and matrix.written) == written
