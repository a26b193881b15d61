"""Reading a run directory: whole, unfinished, in part, damaged."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resode.errors import InputError, IntegrityError
from resode.training.records import reader
from resode.training.records.run import COLUMNS

MakeRun = Callable[..., Path]


def damage(run: Path, *path: str, value: Any) -> None:
    """Change one value of summary.json."""
    file = run / "summary.json"
    summary = copy.deepcopy(json.loads(file.read_text()))
    place = summary
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(summary))


def one_line(caught: pytest.ExceptionInfo[Any]) -> str:
    assert len(caught.value.messages) == 1
    assert "\n" not in caught.value.messages[0]
    return str(caught.value)


def test_a_finished_run_is_read_whole(make_run: MakeRun) -> None:
    run = reader.read(make_run())
    assert run.finished
    assert run.epoch == 4
    assert run.result.test is not None
    assert run.result.test.top1_error == 12.5
    assert run.checkpoints == (1408,)
    assert run.weights
    assert run.epochs[1].validation_error == pytest.approx(26)


def test_the_columns_are_those_that_training_writes() -> None:
    assert tuple(reader.EpochRow.model_fields) == (*COLUMNS, "further")


def test_an_unfinished_run_is_known_by_its_experiment(make_run: MakeRun) -> None:
    run = reader.read(make_run(summary=None, epochs=2))
    assert not run.finished
    assert (run.epoch, run.result.epochs, run.result.seed) == (2, 4, 7)
    assert run.title == "he_resnet20 on cifar10"
    assert run.result.published is not None
    assert run.result.published.top1_error == 8.75


@pytest.mark.parametrize("missing", ["experiment", "environment", "epochs", "summary"])
def test_each_file_may_be_missing(make_run: MakeRun, missing: str) -> None:
    run = reader.read(make_run(**{missing: None}))
    assert run.finished == (missing != "summary")


def test_empty_cells_are_not_measured(make_run: MakeRun) -> None:
    text = "epoch,train_loss,validation_accuracy,more\n1,0.5,80,x\n2,0.4,,y\n"
    run = reader.read(make_run(epochs=text, summary=None))
    assert [e.validation_accuracy for e in run.epochs] == [80, None]
    assert run.validated == run.epochs[0]
    assert run.epochs[1].learning_rate is None


def test_a_row_that_is_being_written_waits(make_run: MakeRun) -> None:
    text = "epoch,train_loss\n1,0.5\n2"
    assert reader.read(make_run(epochs=text, summary=None)).epoch == 1
    with pytest.raises(IntegrityError, match="row 3 has 1 cells"):
        reader.read(make_run("finished", epochs=text))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("loss\n1\n", "header"),
        ("epoch,epoch\n1,1\n", "header"),
        ("epoch,train_loss\n1,0.5\n2,x\n", "row 3: train_loss is 'x', not a number"),
        ("epoch,train_loss\n1,0.5,7\n", "row 2 has 3 cells"),
        ("epoch\n1.5\n", "row 2: epoch is '1.5', not a whole number"),
        ("epoch\n-1\n", "not a count"),
        ("epoch\n" + "9" * 5000 + "\n", "not a whole number"),
        ("epoch\n2\n2\n", "row 3: epoch 2 follows 2"),
        ("epoch,train_accuracy\n1,120\n", "not a percentage"),
        ('epoch\n"1', "not valid CSV"),
        ("epoch,train_loss\n1,\x00\n", "not a number"),
    ],
)
def test_damaged_metrics_are_named(make_run: MakeRun, text: str, problem: str) -> None:
    run = make_run(epochs=text)
    with pytest.raises(IntegrityError, match=problem) as caught:
        reader.read(run)
    assert one_line(caught).startswith(f"{run / 'metrics.csv'}: ")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"epochs": "many"}', '{"test": {}}', "[" * 100_000, "9" * 10_000]
)
def test_a_damaged_summary_is_named(make_run: MakeRun, text: str) -> None:
    run = make_run(summary=text)
    with pytest.raises(IntegrityError) as caught:
        reader.read(run)
    assert one_line(caught).startswith(f"{run / 'summary.json'}: ")


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("test", "top1_error"), 101, "test.top1_error"),
        (("test", "confusion"), [[1, 2]], "not square"),
        (("test", "confusion"), [[1]], "number of classes"),
        (("test", "confusion"), [[16, -4], [1, 19]], "test.confusion.0.1"),
        (("test", "confusion"), [[19, 1], [4, 16]], "contradicts row 0"),
        (("data", "train"), "x", "data.train"),
        (("epochs",), 10**400, "epochs"),
    ],
)
def test_a_summary_that_cannot_be_is_damaged(
    make_run: MakeRun, path: tuple[str, ...], value: Any, problem: str
) -> None:
    run = make_run()
    damage(run, *path, value=value)
    with pytest.raises(IntegrityError, match=problem) as caught:
        reader.read(run)
    one_line(caught)


@pytest.mark.parametrize("file", ["summary.json", "metrics.csv", "environment.json", "experiment.yaml"])
def test_a_file_that_is_no_text_is_damaged(make_run: MakeRun, file: str) -> None:
    run = make_run()
    (run / file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IntegrityError, match="not UTF-8") as caught:
        reader.read(run)
    one_line(caught)


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "!!python/object/apply:os.getcwd []\n", "a: 2001-99-99\n"])
def test_a_damaged_experiment_is_named(make_run: MakeRun, text: str) -> None:
    with pytest.raises(IntegrityError, match=r"experiment\.yaml") as caught:
        reader.read(make_run(experiment=text))
    one_line(caught)


def test_what_is_no_run_says_what_it_is(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(InputError, match="no such directory"):
        reader.read(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file, not a run directory"):
        reader.read(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no run directory"):
        reader.read(tmp_path / "empty")
    run = make_run()
    with pytest.raises(InputError, match=f"it holds {run}"):
        reader.read(run.parent)


def test_checkpoints_are_the_numbered_folders(make_run: MakeRun) -> None:
    run = make_run(summary=None)
    for name in ("20", "100", "100.partial", ".tmp"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "5000").touch()
    assert reader.read(run).checkpoints == (20, 100, 1408)
