"""Tracking: TensorBoard has what metrics.csv has, each epoch once, whenever tracking began."""

import csv

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resode.errors import Stopped
from resode.training import Run
from resode.training.launch import train
from resode.training.loop.callbacks import Callbacks
from resode.training.tracking import TensorBoard
from tests.training.loop.test_session import StopAt


def events(run):
    return EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()


def assert_tracked(run):
    """Every measured number of metrics.csv is there once, to the last bit of a float32, and so is the end."""
    found = events(run)
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    columns = [column for column in rows[0] if column != "epoch" and any(row[column] for row in rows)]
    assert set(columns) | {"test_error"} == set(found.Tags()["scalars"])
    for column in columns:
        points = [(event.step, event.value) for event in found.Scalars(column)]
        assert points == [(int(row["epoch"]), np.float32(row[column])) for row in rows if row[column]]
    (end,) = found.Scalars("test_error")
    summary = Run(run).read_summary()
    assert (end.step, end.value) == (summary["epochs"], np.float32(summary["test"]["top1_error"]))
    (experiment,) = found.Tensors("experiment/text_summary")
    lines = experiment.tensor_proto.string_val[0].decode().splitlines()
    assert [line.removeprefix("    ") for line in lines] == (run / "experiment.yaml").read_text().splitlines()


def tracked(experiment, run, *others, resume=False):
    tracker = TensorBoard(run)
    try:
        return train(None, experiment, out=run, resume=resume, callback=Callbacks([tracker, *others]))
    finally:
        tracker.close()


def test_events_are_the_metrics(tiny, tmp_path):
    run = tmp_path / "run"
    tracked(tiny.replace(evaluation=tiny.evaluation.model_copy(update={"every": 2})), run)
    assert_tracked(run)
    assert [event.step for event in events(run).Scalars("validation_loss")] == [2]


def test_a_killed_run_has_each_epoch_once(tiny, tmp_path):
    """It is stopped in its second epoch of three; the event file already has the two remaining epochs."""
    run, experiment = tmp_path / "run", tiny.replace(epochs=3)
    with pytest.raises(Stopped):
        tracked(experiment, run, StopAt(iteration=7))
    lost = TensorBoard(run)
    lost.started(None, 1)
    for epoch in (2, 3):
        lost.epoch_ended({"epoch": epoch, "train_loss": -1.0})
    lost.close()
    tracked(experiment, run, resume=True)
    assert_tracked(run)


def test_tracking_may_begin_late(tiny, tmp_path):
    """Untracked until its second epoch, and between two parts."""
    run, experiment = tmp_path / "run", tiny.replace(epochs=4)
    with pytest.raises(Stopped):
        train(None, experiment, out=run, callback=StopAt(iteration=7))
    with pytest.raises(Stopped):
        tracked(experiment, run, StopAt(iteration=5), resume=True)
    with pytest.raises(Stopped):
        train(None, experiment, out=run, resume=True, callback=StopAt(iteration=5))
    tracked(experiment, run, resume=True)
    assert_tracked(run)
