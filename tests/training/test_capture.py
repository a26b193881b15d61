"""A step that is recorded and launched as a whole is the step as it is written.

CUDA graphs need a GPU; a recorder in software (`tests.training.tape`) keeps their rules, to the bit.
"""

import pytest
import torch
from torch import nn

from resode import training
from resode.errors import Stopped
from resode.training import Experiment, capture, engine
from resode.training.capture import Captured, known, recorder
from resode.training.engine import Trainer
from resode.training.launch import train
from resode.training.progress import Observer
from resode.training.runs import Run
from resode.training.setup import prepare
from tests.training.tape import Asking, Tapes
from tests.training.test_engine import VARIANTS, Listener, StopAt, assert_same

FLASH = {"epochs": 3, "batch_size": 256, "precision": "fp32"}
CASES = {
    **{name: ("quickstart", settings) for name, settings in VARIANTS.items()},
    "sizes": ("quickstart", {"sizes": [{"until": 0.4, "size": 6}], "optimizer.name": "muon"}),
    "twisted on the way": ("quickstart", {"twist": [{"at": 0.5}], "schedule.name": "onecycle"}),
    "twist": ("quickstart-twist", {}),
    "parabolic": (
        "quickstart-parabolic",
        {
            "box": 0.5,
            "smoothness.dirichlet": 0.1,
            "smoothness.total_variation": 0.01,
            "refine": [{"at": 0.5}],
        },
    ),
    "checkpointed": ("quickstart-parabolic", {"gradients": ["checkpointed"]}),
}


@pytest.fixture
def tapes(monkeypatch):
    """Steps are recorded on tapes, after one of each shape; the recorders that were made."""
    made = []

    def recorder(*_):
        made.append(Tapes())
        return made[-1]

    monkeypatch.setattr(engine, "recorder", recorder)
    monkeypatch.setattr(capture, "WARM", 1)
    return made


def experiment_of(recipe, settings) -> Experiment:
    narrow = {
        "quickstart": {"model.widths": [4, 4, 8]},
        "quickstart-parabolic": {"model.widths": [8, 8]},
        "quickstart-twist": {"model.of": {"name": "digits_resnet8", "widths": [4, 4, 8]}},
    }
    return Experiment.from_recipe(recipe, FLASH | narrow[recipe] | settings)


@pytest.mark.parametrize("case", list(CASES))
def test_recorded_steps_are_those_that_are_written(tmp_path, monkeypatch, tapes, case):
    """Each is done once: whole batches, last ones, other sizes, on finer grids, at every learning rate."""
    experiment = experiment_of(*CASES[case])
    listener = Listener()
    train(None, experiment, out=tmp_path / "recorded", observer=listener)
    assert sum(tape.recordings for tape in tapes) >= 2  # of a whole and of a last batch
    assert not [line for line in listener.lines if "CUDA" in line]
    monkeypatch.setattr(capture, "WARM", 10**9)
    train(None, experiment, out=tmp_path / "written")
    assert_same(tmp_path / "recorded", tmp_path / "written")


def test_a_run_of_recorded_steps_stopped_anywhere_ends_in_the_same_bits(tmp_path, tapes):
    experiment = experiment_of("quickstart", VARIANTS["all options"])
    train(None, experiment, out=tmp_path / "whole")
    for iteration in (1, 4, 3):
        with pytest.raises(Stopped):
            train(None, experiment, out=tmp_path / "parts", resume=True, observer=StopAt(iteration))
    train(None, experiment, out=tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


class Reader(nn.Module):
    """A part that asks the device for a number."""

    def forward(self, u):
        return u * (1 if u.sum().item() > -1e9 else 2)


def test_what_cannot_be_recorded_is_done_as_it_is_written(tmp_path, monkeypatch, tapes):
    """It is told once, and nothing of the attempt is left."""
    experiment = experiment_of("quickstart", {})
    for name, warm in (("tried", 1), ("written", 10**9)):
        monkeypatch.setattr(capture, "WARM", warm)
        module = training.load(train(None, experiment, out=tmp_path / "first", resume=True).run.path)
        module.bn1 = nn.Sequential(module.bn1, Reader())
        listener = Listener()
        train(module, experiment, out=tmp_path / name, observer=listener)
        told = [line for line in listener.lines if "CUDA graph" in line]
        assert len(told) == (warm == 1)
        assert all("_local_scalar_dense.default is not permitted" in line for line in told)
    assert_same(tmp_path / "tried", tmp_path / "written")


@pytest.mark.parametrize("case", list(CASES))
def test_a_step_asks_the_device_for_no_number(tmp_path, case):
    """Nor does it send one that it did not send before: a GPU is never waited for within an epoch."""
    experiment = experiment_of(*CASES[case]).replace(refine=(), twist=())
    trainer = Trainer(prepare(experiment), Run(tmp_path), Observer())
    trainer.free_reading = False
    trainer.step()
    with Asking():
        trainer.step()
    assert trainer.position.iteration == 2


def test_a_number_that_a_step_asks_for_is_found():
    with Asking(), pytest.raises(RuntimeError, match="not permitted"):
        torch.ones(3).sum().item()


def test_networks_with_parts_of_ones_own_are_recorded_only_where_that_is_asked_for(monkeypatch):
    """What they do in Python may change from step to step."""
    monkeypatch.setattr(capture, "CudaGraphs", lambda device: "graphs")
    gpu, plain = torch.device("cuda"), Experiment.from_recipe("quickstart", FLASH)
    module = prepare(plain).module
    assert plain.cuda_graph == "auto"
    assert recorder(module, gpu, "auto") == "graphs"
    assert recorder(module, gpu, False) is None
    assert recorder(module, torch.device("cpu"), True) is None
    module.layer1[0].conv1.register_forward_hook(lambda *_: None)
    assert recorder(module, gpu, "auto") is None
    assert recorder(module, gpu, True) == "graphs"
    assert not known(nn.Sequential(nn.ReLU(), Reader()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", list(CASES))
def test_a_gpu_records_every_network_and_trains_it_alike(tmp_path, case):
    """Its kernels may add in another order each time: equal up to rounding."""
    losses = {}
    for graph in (True, False):
        experiment = experiment_of(*CASES[case]).replace(device="cuda", cuda_graph=graph, refine=(), twist=())
        listener = Listener()
        trainer = Trainer(prepare(experiment), Run(tmp_path), listener)
        while trainer.position.step < trainer.steps - 1:
            trainer.step()
        losses[graph] = trainer.sums.tolist()
        assert not listener.lines
        if graph:
            assert isinstance(trainer.work, Captured)
            assert trainer.work.recorded
    assert losses[True] == pytest.approx(losses[False], rel=1e-2)
