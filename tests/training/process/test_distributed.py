"""Several processes train one network: shares of batches, synchronised statistics, runs under torchrun."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from resode.data import Augmentation, Loader, load
from resode.errors import InputError
from resode.fields.batch_norm import BatchNorm2d
from resode.models import create
from resode.training.loop.evaluation import evaluate
from resode.training.process import distributed
from resode.training.process.sync_batchnorm import (
    SyncBatchNorm2d,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from tests import ranks

WITHOUT_STATISTICS = {
    "name": "dynamic",
    "stem": {"norm": "group"},
    "stages": [
        {"width": 4, "field": {"name": "preactivation", "norm": "group"}, "integrator": "euler", "states": 2}
    ],
}


@pytest.fixture
def digits():
    return load("digits").train


def loader(images, part, batch_size=32, samples=90, **options):
    options |= {"batch_size": batch_size, "mean": [0.3], "std": [0.4], "device": "cpu", "shard": part}
    return Loader(images, np.arange(samples), **options)


# ---------------------------------------------------------------- parts of batches


@pytest.mark.parametrize("parts", [2, 3])
def test_the_parts_of_a_batch_are_the_batch(digits, parts):
    augmentation = Augmentation(crop=2, flip=True, mixup=0.2)
    whole = loader(digits, (0, 1), augmentation=augmentation)
    own = [loader(digits, (r, parts), augmentation=augmentation) for r in range(parts)]
    for step in range(whole.steps):
        batch, found = whole.batch(3, step), [each.batch(3, step) for each in own]
        for r, part in enumerate(found):
            assert torch.equal(part.inputs, batch.inputs[r::parts])
            assert torch.equal(part.targets, batch.targets[r::parts])
            assert torch.equal(part.partners, batch.partners[r::parts])
        assert sum(part.samples for part in found) == batch.samples
        values = torch.randn(batch.samples, dtype=torch.float64)  # a loss for each image
        mean = sum(part.scale * values[r::parts].mean() for r, part in enumerate(found)) / parts
        torch.testing.assert_close(mean, values.mean())


def test_an_empty_part_counts_for_nothing(digits):
    own = loader(digits, (1, 2), batch_size=1, samples=3)
    batch = own.batch(0, 0)
    assert (batch.samples, batch.scale, len(batch.targets)) == (0, 0, 1)


def test_parts_are_evaluated_to_the_scores_of_the_whole(digits):
    network = create("digits_resnet8")
    expected = evaluate(network, loader(digits, (0, 1)))
    parts = [evaluate(network, loader(digits, (r, 4))) for r in range(4)]
    assert sum(part.samples for part in parts) == expected.samples == 90
    assert torch.equal(sum(part.confusion for part in parts), expected.confusion)
    assert sum(part.loss * part.samples for part in parts) / 90 == pytest.approx(expected.loss, rel=1e-5)


# ---------------------------------------------------------------- synchronised batch normalisation


@pytest.fixture
def group(tmp_path):
    """A process group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_statistics_of_one_process_are_those_of_batchnorm(group, momentum):
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3, momentum=momentum).double()
    nn.init.normal_(plain.weight)
    own = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3, momentum=momentum))).double()
    assert isinstance(own[0], SyncBatchNorm2d)
    own[0].load_state_dict(plain.state_dict())
    for _ in range(2):
        x = (5 + torch.randn(4, 3, 5, 6, dtype=torch.float64)).requires_grad_()
        results = []
        for network in (plain, own):
            y = network(x)
            inputs = (x, *network.parameters())
            results.append((y, *torch.autograd.grad((y**3).sum(), inputs), *network.buffers()))
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
    assert torch.equal(own.eval()(x), own[0](x))


def test_synchronising_keeps_the_very_tensors():
    network = create("he_resnet20", widths=(4, 4, 8))
    before = dict(network.state_dict(keep_vars=True))
    assert convert_sync_batchnorm(network) is network
    after = network.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert not any(type(m) is nn.BatchNorm2d for m in network.modules())
    back = revert_sync_batchnorm(network).state_dict(keep_vars=True)
    assert all(back[name] is tensor for name, tensor in before.items())
    assert not any(isinstance(m, SyncBatchNorm2d) for m in network.modules())


def test_a_layer_that_is_used_twice_stays_one_layer():
    norm = nn.BatchNorm2d(3)
    network = convert_sync_batchnorm(nn.ModuleDict({"a": norm, "b": nn.Sequential(norm), "c": norm}))
    assert network["a"] is network["c"] is network["b"][0]
    assert type(network["a"]) is SyncBatchNorm2d


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"name": "he_resnet8", "widths": [4, 4, 8], "gradient": "checkpointed"},
        {
            "name": "dynamic",
            "stages": [
                {
                    "width": 4,
                    "field": {"name": "preactivation", "norm": "batch"},
                    "integrator": "coupling",
                    "states": 3,
                    "gradient": "reversible",
                }
            ],
        },
    ],
    ids=lambda model: model["name"],
)
def test_two_ranks_with_synchronised_statistics_give_the_gradient_of_one_process(model):
    torch.manual_seed(0)
    network = create(**model).double()
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    alone = ranks.gradients(network, x)
    together = ranks.gradients(convert_sync_batchnorm(network), x, ranks=2)
    for key, gradient in alone.items():
        torch.testing.assert_close(together[key], gradient, rtol=1e-8, atol=1e-10)


class Named(nn.BatchNorm2d):
    """A layer of the user's that computes what `nn.BatchNorm2d` does."""

    def __init__(self, channels, name):
        super().__init__(channels)
        self.name = name


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x.relu())


def test_layers_of_the_user_come_back_with_the_trained_tensors(group):
    layers = [nn.BatchNorm2d(2), Named(2, "first"), BatchNorm2d(2), nn.BatchNorm2d(2, affine=False)]
    layers[0].bias = None
    network = convert_sync_batchnorm(nn.Sequential(*layers))
    assert all(type(layer) is SyncBatchNorm2d for layer in network)
    network.double()(1 + torch.randn(3, 2, 4, 4, dtype=torch.float64)).square().sum().backward()
    trained = network.eval().state_dict(keep_vars=True)
    assert trained["0.running_mean"].min() > 0
    revert_sync_batchnorm(network)
    assert list(network) == layers
    assert layers[1].name == "first"
    assert not layers[1].training
    assert all(network.state_dict(keep_vars=True)[name] is tensor for name, tensor in trained.items())


@pytest.mark.parametrize(
    "layer", [Own(2), nn.BatchNorm1d(2), nn.BatchNorm3d(2), spectral_norm(nn.BatchNorm2d(2))]
)
def test_a_layer_that_cannot_be_synchronised_is_refused_by_name(layer):
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(layer))
    with pytest.raises(InputError, match=rf"not 1\.0 \({type(layer).__name__}\)"):
        convert_sync_batchnorm(network)
    assert type(network[0]) is nn.BatchNorm2d


# ---------------------------------------------------------------- torchrun


def torchrun(out, *arguments, processes=2, restarts=0, epochs=2):
    """The command that trains a small network on digits."""
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words += [f"--max-restarts={restarts}", "-m", "resode", "train", "quickstart", "--out", str(out)]
    words += ["--precision", "fp32", "--set", f"epochs={epochs}", *arguments]
    return [sys.executable, *words]


def run(*arguments, **options):
    """Run it; returns what it logs."""
    finished = subprocess.run(
        torchrun(*arguments, **options), env=environment(), capture_output=True, text=True, timeout=900
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stderr


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def rows(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def workers(starter):
    """The processes that torchrun has started, in the order of their ranks."""
    found = subprocess.run(["pgrep", "-P", str(starter.pid)], capture_output=True, text=True)
    return sorted(map(int, found.stdout.split()))


def interrupted(out, number, **options):
    """A run whose second rank gets a signal after two epochs: exit code and log of torchrun."""
    starter = subprocess.Popen(torchrun(out, **options), env=environment(), stderr=subprocess.PIPE, text=True)
    while not ((out / "metrics.csv").is_file() and len(rows(out)) >= 2):
        assert starter.poll() is None, starter.stderr.read()
        time.sleep(0.02)
    os.kill(workers(starter)[1], number)
    _, log = starter.communicate(timeout=900)
    return starter.returncode, log


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Without statistics of a batch: the same parameters up to rounding, each image counted once.

    Two ranks add the gradient of a batch in another order, and a convolution may compute fewer images by
    another algorithm. A sum of n terms of order one then differs by at most k sqrt(n) u, u = 2^-24, with
    probability 1 - 2 n exp(-k^2 / 2) (Higham & Mary 2019, doi:10.1137/18M1226312). A kernel's gradient has
    n = 64 images x 64 pixels, and k = 8 is certain enough. A step of SGD changes the parameters by lr times
    that, momentum m makes it lr / (1 - m), and all steps add up: 1.2e-4. Without the scale of an uneven
    last batch the difference is 2e-3.
    """
    lr, momentum, batch_size, pixels = 0.01, 0.9, 64, 64
    model = ["--set", f"model={WITHOUT_STATISTICS}", "--set", f"optimizer.lr={lr}"]
    run(tmp_path / "one", *model, processes=1)
    run(tmp_path / "two", *model)
    steps = int(rows(tmp_path / "one")[-1]["iterations"])
    tolerance = steps * lr / (1 - momentum) * 8 * (batch_size * pixels) ** 0.5 * 2**-24
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=tolerance)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a["iterations"] == b["iterations"]
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-4)
        assert float(a["validation_loss"]) == pytest.approx(float(b["validation_loss"]), rel=1e-4)
    summaries = [processes_of(tmp_path / name) for name in ("one", "two")]
    assert summaries == [(1, 360), (2, 360)]


def processes_of(out):
    import json

    environment = json.loads((out / "environment.json").read_text())
    return environment["processes"], json.loads((out / "summary.json").read_text())["test"]["samples"]


@pytest.mark.slow
def test_what_happens_to_one_process_happens_to_all(tmp_path):
    """A signal to one stops all, after saving; one that dies is restarted; both end in the same bits."""
    options = {"epochs": 6}
    run(tmp_path / "whole", **options)
    expected = load_file(tmp_path / "whole" / "model.safetensors")

    code, log = interrupted(tmp_path / "stopped", signal.SIGTERM, restarts=1, **options)
    assert code != 0
    assert "and saved; go on with: resode train --resume" in log
    assert "ended on purpose" in log  # and is not started again
    assert 'Traceback (most recent call last):\n  File "' + str(tmp_path) not in log
    assert not (tmp_path / "stopped" / "summary.json").exists()
    log = run(tmp_path / "stopped", "--resume", **options)
    assert "resuming at iteration" in log
    assert_same(load_file(tmp_path / "stopped" / "model.safetensors"), expected)

    code, log = interrupted(tmp_path / "killed", signal.SIGKILL, restarts=1, **options)
    assert code == 0, log
    assert "resuming at iteration" in log
    assert_same(load_file(tmp_path / "killed" / "model.safetensors"), expected)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    code, _ = interrupted(tmp_path, signal.SIGTERM, epochs=6)
    assert code != 0
    log = run(tmp_path, "--resume", processes=1, epochs=6)
    assert "1 processes instead of 2: order and augmentation of the images stay the same" in log
    assert len(rows(tmp_path)) == 6


# ---------------------------------------------------------------- the world


def test_one_process_is_a_world_of_its_own(monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(key, raising=False)
    with distributed.process_group() as world:
        assert world == distributed.SINGLE
        assert world.first
        assert world.broadcast(3) == 3
        assert world.all_gather("a") == ["a"]
        assert world.all_reduce_max([1, 2.5]) == [1, 2.5]
        network = nn.Linear(2, 2)
        assert world.data_parallel(network) is network


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    world = distributed.World(rank=3, size=4, local_rank=1)
    assert world.device("cuda:0") == world.device("cuda") == "cuda:1"
    assert world.device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert world.device("auto") == "cuda:1"
    assert distributed.SINGLE.device("auto") == "auto"


def test_a_rank_that_is_no_integer_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(InputError, match="start by torchrun"):
        distributed.World.from_environment()
