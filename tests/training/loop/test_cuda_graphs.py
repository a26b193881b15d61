"""A step replayed as a CUDA graph equals the eager step.

CUDA graphs need a GPU; a graph in software (`tape`) keeps most of their rules, to the bit.
"""

import contextlib
import gc
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import resode
from resode.data import Batch
from resode.errors import Stopped
from resode.training import Experiment
from resode.training.launch import train
from resode.training.loop import cuda_graphs, step
from resode.training.loop.cuda_graphs import GraphedStep
from resode.training.loop.step import Trainer
from resode.training.setup.execution import is_known, wants_cuda_graph
from resode.training.setup.preparation import prepare
from tests.training.loop.tape import Tapes, Watching
from tests.training.loop.test_session import VARIANTS, Listener, StopAt, assert_same, metrics

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
    """Steps are captured on tapes after one warm-up; gives the tapes."""
    made = []

    def tapes(setup):
        made.append(Tapes())
        return made[-1]

    monkeypatch.setattr(step, "cuda_graphs", tapes)
    monkeypatch.setattr(cuda_graphs, "WARM_UP", 1)
    return made


def experiment_of(recipe, settings) -> Experiment:
    narrow = {
        "quickstart": {"model.widths": [4, 4, 8]},
        "quickstart-parabolic": {"model.widths": [8, 8]},
        "quickstart-twist": {"model.of": {"name": "digits_resnet8", "widths": [4, 4, 8]}},
    }
    return Experiment.from_recipe(recipe, FLASH | narrow[recipe] | settings)


@pytest.mark.parametrize("case", list(CASES))
def test_replayed_steps_equal_eager_ones(tmp_path, monkeypatch, tapes, case):
    """For whole batches, last ones, other sizes, on finer grids, at every learning rate."""
    experiment = experiment_of(*CASES[case])
    listener = Listener()
    train(None, experiment, out=tmp_path / "replayed", callback=listener)
    assert sum(tape.captures for tape in tapes) >= 2  # a whole batch and a last one
    assert not [line for line in listener.lines if "CUDA" in line]
    monkeypatch.setattr(cuda_graphs, "WARM_UP", 10**9)
    train(None, experiment, out=tmp_path / "eager")
    assert_same(tmp_path / "replayed", tmp_path / "eager")


def test_a_run_of_replayed_steps_stopped_anywhere_ends_in_the_same_bits(tmp_path, tapes):
    experiment = experiment_of("quickstart", VARIANTS["all options"])
    train(None, experiment, out=tmp_path / "whole")
    for iteration in (1, 4, 3):
        with pytest.raises(Stopped):
            train(None, experiment, out=tmp_path / "parts", resume=True, callback=StopAt(iteration))
    train(None, experiment, out=tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


class Reader(nn.Module):
    """A module that reads a value from the device."""

    def forward(self, u):
        return u * (1 if u.sum().item() > -1e9 else 2)


@pytest.mark.parametrize("blind", [False, True])
def test_what_cannot_be_captured_runs_eagerly(tmp_path, monkeypatch, blind):
    """With one message; the attempt changes nothing and leaves no memory allocated."""
    made = []

    def tapes(setup):
        made.append(Tapes(blind))
        return made[-1]

    monkeypatch.setattr(step, "cuda_graphs", tapes)
    experiment = experiment_of("quickstart", {})
    for name, warm in (("tried", 1), ("eager", 10**9)):
        monkeypatch.setattr(cuda_graphs, "WARM_UP", warm)
        module = prepare(experiment).module
        module.bn1 = nn.Sequential(module.bn1, Reader())
        listener = Listener()
        train(module, experiment, out=tmp_path / name, callback=listener)
        lines = [line for line in listener.lines if "CUDA graph" in line]
        assert len(lines) == (warm == 1)
        assert all("_local_scalar_dense.default waits" in line for line in lines)
    assert not any(tapes.captures for tapes in made)
    assert_same(tmp_path / "tried", tmp_path / "eager")


def test_a_shape_that_cannot_be_captured_disables_the_graphs_of_all(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "WARM_UP", 1)
    messages, seen = [], torch.zeros(())
    graphed = GraphedStep(Tapes(), messages.append)

    def work(batch):
        seen.add_(batch.inputs.sum())
        if len(batch.targets) == 3 and seen > 0:
            return seen * 1, batch.inputs + 1
        return seen * 2, batch.inputs + 1

    total = 0.0
    for number, size in enumerate([2, 2, 2, 3, 2, 3, 3, 2]):
        loss, logits = graphed(work, Batch(torch.full((size, 1), float(number)), torch.zeros(size)))
        total += number * size
        assert float(loss) == (total if size == 3 else 2 * total)
        assert torch.equal(logits, torch.full((size, 1), number + 1.0))
        assert len(graphed.captured) == (1 if 0 < number < 3 else 0)
    assert len(messages) == 1


def test_a_trainer_is_freed_without_garbage_collection(tapes):
    """So are its images and its optimizer."""
    gc.disable()
    try:
        trainer = Trainer(prepare(experiment_of("quickstart", {})))
        for _ in range(3):
            trainer.step()
        assert trainer.graphed.captured
        gone = weakref.ref(trainer), weakref.ref(trainer.graphed)
        del trainer
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


def test_a_run_may_be_resumed_without_graphs(tmp_path):
    """The setting changes no result."""
    experiment = experiment_of("quickstart", {})
    with pytest.raises(Stopped):
        train(None, experiment, out=tmp_path / "run", callback=StopAt(2))
    changed = experiment.replace(cuda_graph=False)
    result = train(None, changed, out=tmp_path / "run", resume=True)
    assert result.summary["status"] == "finished"


@pytest.mark.parametrize("case", list(CASES))
def test_a_step_does_not_synchronise(case):
    """It reads nothing from the device and copies no new values to it."""
    experiment = experiment_of(*CASES[case]).replace(refine=(), twist=())
    trainer = Trainer(prepare(experiment))
    trainer.reads_freely = False
    trainer.step()
    with Watching() as watching:
        trainer.step()
    assert watching.waits == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0]) + x,
        lambda x: bool((x > 0).all()),
        lambda x: torch.bincount(x.long()),
    ],
)
def test_synchronising_operations_are_noticed(ask):
    with Watching() as watching:
        ask(torch.ones(3))
    assert watching.waits


def test_networks_with_modules_of_the_user_run_as_graphs_only_on_request():
    """Their Python code may differ from step to step."""
    gpu, plain = torch.device("cuda"), Experiment.from_recipe("quickstart", FLASH)
    module = prepare(plain).module
    assert plain.cuda_graph == "auto"

    def wants(setting, network=module, device=gpu, processes=1, short_of_memory=False):
        return wants_cuda_graph(
            network, device, setting, processes=processes, short_of_memory=short_of_memory
        )

    assert wants("auto")
    assert not wants("auto", short_of_memory=True)
    assert wants(True, short_of_memory=True)
    assert not wants(False)
    assert not wants(True, device=torch.device("cpu"))
    assert not wants(True, processes=2)
    assert not wants(True, network=resode.create("neural_ode"))
    module.layer1[0].conv1.register_forward_hook(lambda *_: None)
    assert not wants("auto")
    assert wants(True)
    assert not is_known(nn.Sequential(nn.ReLU(), Reader()))


def test_a_setting_without_effect_is_reported():
    notes = prepare(experiment_of("quickstart", {}).replace(cuda_graph=True)).notes
    assert [line for line in notes if "cuda_graph: true has no effect here: no GPU" in line]
    assert not [line for line in prepare(experiment_of("quickstart", {})).notes if "cuda_graph" in line]


class Cuda:
    """Records the calls of `torch.cuda`, in order; capture and replay do nothing."""

    def __init__(self, monkeypatch):
        self.asked, self.now, self.mode = [], [SimpleNamespace(name="outside", device="gpu")], 0
        self.now[0].wait_stream = lambda other: self.asked.append(f"outside waits for {other.name}")
        for name in ("current_stream", "stream", "graph", "set_sync_debug_mode", "get_sync_debug_mode"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Stream", self.new_stream)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))

    def new_stream(self, device):
        made = SimpleNamespace(name="apart", device=device)
        made.wait_stream = lambda other: self.asked.append(f"apart waits for {other.name}")
        return made

    def current_stream(self, device):
        return self.now[-1]

    @contextlib.contextmanager
    def stream(self, stream):
        self.now.append(stream)
        try:
            yield
        finally:
            self.now.pop()

    @contextlib.contextmanager
    def graph(self, graph, pool, stream):
        self.asked.append(f"capture in {stream.name}, {pool}")
        try:
            yield
        finally:
            self.asked.append("captured")

    def set_sync_debug_mode(self, mode):
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        self.mode = mode

    def get_sync_debug_mode(self):
        return 0

    def do(self):
        self.asked.append(f"work in {self.now[-1].name}, {self.mode}")
        return "loss", "logits"


def test_the_calls_of_cuda_are_ordered(monkeypatch):
    """The side stream waits for earlier work, and later work for the side stream."""
    cuda = Cuda(monkeypatch)
    graphs = cuda_graphs.CudaGraphs(torch.device("cuda"))
    assert graphs.warm_up(cuda.do) == (("loss", "logits"), "")
    around = ["apart waits for outside", "work in apart, warn", "outside waits for apart"]
    assert cuda.asked == around
    assert cuda.mode == 0

    def warning():
        warnings.warn("raised by the network", stacklevel=1)
        return cuda.do()

    with pytest.warns(UserWarning, match="raised by the network"):
        assert graphs.warm_up(warning)[1] == ""

    def waiting():
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        return cuda.do()

    assert graphs.warm_up(waiting) == (("loss", "logits"), "it waits for the GPU")
    cuda.asked.clear()
    _, results = graphs.capture(cuda.do)
    assert results == ("loss", "logits")
    recorded = ["capture in apart, pool", "work in apart, 0", "captured"]
    assert cuda.asked == [around[0], *recorded, around[2]]

    def failing():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        graphs.capture(failing)
    with pytest.raises(RuntimeError):
        graphs.warm_up(failing)
    assert [stream.name for stream in cuda.now] == ["outside"]
    assert cuda.mode == 0


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("case", list(CASES))
def test_a_gpu_trains_every_network_alike_with_graphs(tmp_path, case):
    """Its kernels may sum in another order each time: the losses are equal up to rounding."""
    rows = {}
    for graph in (True, False):
        listener = Listener()
        experiment = experiment_of(*CASES[case]).replace(device="cuda", cuda_graph=graph, epochs=6)
        run = train(None, experiment, out=tmp_path / str(graph), callback=listener).run
        assert not [line for line in listener.lines if "CUDA graph" in line]
        rows[graph] = [float(row["train_loss"]) for row in metrics(run.path)]
    assert rows[True] == pytest.approx(rows[False], rel=0.05)


@needs_gpu
def test_a_gpu_replays_without_synchronising():
    experiment = experiment_of("quickstart", VARIANTS["all options"]).replace(device="cuda", average=None)
    trainer = Trainer(prepare(experiment))
    for _ in range(cuda_graphs.WARM_UP):
        trainer.step()
    assert not trainer.graphed.captured
    trainer.position.step = 0
    trainer.step()
    assert len(trainer.graphed.captured) == 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_gpu_runs_eagerly_what_it_cannot_capture(tmp_path):
    experiment = experiment_of("quickstart", {}).replace(device="cuda", cuda_graph=True)
    module = prepare(experiment).module
    module.bn1 = nn.Sequential(module.bn1, Reader(), nn.Dropout(0.1))
    listener = Listener()
    train(module, experiment, out=tmp_path / "run", callback=listener)
    assert [line for line in listener.lines if "it waits for the GPU" in line]
