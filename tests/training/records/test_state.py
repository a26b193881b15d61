"""State: weights of a run that did not finish say so, wherever they are read, and in what they become."""

import json
import signal

import pytest
import torch
from torch import nn

import resode
from resode import interop, weights
from resode.errors import DivergenceError, Stopped
from resode.training import Callback
from resode.training.launch import train
from resode.training.loop import divergence
from resode.training.records.run import Run
from resode.training.records.state import State, state_of

DIVERGING = {"optimizer": {"name": "sgd", "lr": 1e30}, "schedule": {"name": "constant"}}


class Stop(Callback):
    """Stops a run after its first epoch: by a signal, or as callbacks may."""

    def __init__(self, number):
        self.number = number

    def epoch_ended(self, row):
        if self.number is None:
            return "good enough"
        signal.raise_signal(self.number)
        return None


@pytest.fixture
def finished(tiny, tmp_path):
    return train(None, tiny.replace(checkpoint={"every": 1}), out=tmp_path / "run").path


@pytest.fixture
def interrupted(tiny, tmp_path):
    with pytest.raises(Stopped):
        train(None, tiny, out=tmp_path / "run", callback=Stop(signal.SIGTERM))
    return tmp_path / "run"


@pytest.fixture
def diverged(tiny, tmp_path):
    with pytest.raises(DivergenceError):
        train(None, tiny.replace(**DIVERGING), out=tmp_path / "run")
    return tmp_path / "run"


def states(found):
    return (found.record()["state"], found.record()["iteration"])


def test_weights_of_a_finished_run_need_no_note(finished):
    found = resode.evaluate(finished)
    assert states(found) == ("finished", 10)
    assert not any("run" in note for note in found.notes)
    assert resode.predict(finished, found.images.pixels[:1]).notes == ()


def test_an_earlier_checkpoint_of_a_finished_run_is_unfinished(finished):
    found = resode.evaluate(finished / "checkpoints" / "5")
    assert states(found) == ("unfinished", 5)
    assert found.notes[0].endswith("checkpoints/5: weights of an unfinished run: iteration 5 of 10")
    assert states(resode.evaluate(finished / "checkpoints" / "10")) == ("finished", 10)


def test_a_run_that_was_killed_is_unfinished(interrupted):
    (interrupted / "ended.json").unlink()
    found = resode.evaluate(interrupted)
    iteration = found.record()["iteration"]
    assert states(found) == ("unfinished", iteration)
    assert f"weights of an unfinished run: iteration {iteration} of 10" in found.notes[0]
    assert "unfinished" in repr(found)


def test_a_run_that_a_signal_or_a_callback_stopped_says_so(interrupted, tiny, tmp_path):
    assert resode.evaluate(interrupted).record()["state"] == "stopped"
    result = train(None, tiny, out=tmp_path / "early", callback=Stop(None))
    for net in (result, result.path, result.module, result.path / "model.safetensors"):
        found = resode.evaluate(net, "digits")
        assert states(found) == ("stopped", 5)
        assert "weights of a run that was stopped: iteration 5" in found.notes[0]


def test_a_diverged_run_keeps_the_last_finite_checkpoint_and_is_called_diverged(diverged):
    net = resode.load(diverged)
    assert all(t.isfinite().all() for t in net.state_dict().values())
    assert (net.card.training["state"], net.card.training["iteration"]) == ("diverged", 0)
    assert repr(Run(diverged)).endswith(": diverged")
    for given in (diverged, net):
        found = resode.evaluate(given, "digits")
        assert states(found) == ("diverged", 0)
        assert "a run that diverged, the last finite ones: iteration 0 of 10" in found.notes[0]
        predicted = resode.predict(given, found.images.pixels[:2])
        assert "diverged" in predicted.notes[0]
        assert [record["state"] for record in predicted.records()] == ["diverged"] * 2


@pytest.mark.parametrize("suffix", ["safetensors", "pt2"])
def test_an_exported_file_keeps_the_state(diverged, tmp_path, suffix):
    file = tmp_path / f"net.{suffix}"
    interop.export(resode.load(diverged), file)
    if suffix == "pt2":
        extra = {"resode": ""}
        torch.export.load(file, extra_files=extra)
        training = json.loads(extra["resode"])["training"]
        assert (training["state"], training["iteration"]) == ("diverged", 0)
    else:
        assert states(resode.evaluate(file)) == ("diverged", 0)


def test_what_is_known_of_other_weights():
    preprocessing = weights.Preprocessing((0.5,), (0.5,), (8, 8), 1, ("a", "b"))

    def of(**training):
        return state_of(weights.Card(None, preprocessing, training))

    assert of(epochs=3) == State("finished")
    assert of(iterations="7 of 9") == State("unfinished", 7, 9)
    assert of(imported={}) == state_of(None) == State()
    assert State().note("x") == State("finished", 3).note("x") == ""


def test_running_statistics_that_are_not_finite_are_no_finite_checkpoint():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert divergence.not_finite(net) is None
    net[1].running_var[0] = torch.inf
    assert divergence.not_finite(net) == "the value of '1.running_var' in layer '1'"
