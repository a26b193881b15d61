"""Gradient methods in a run: budgets, drift, compilation, averages, clipping, several ranks."""

import copy
import csv
import os
import signal

import pytest
import torch
from torch import nn

from resode.blocks import DynamicBlock
from resode.errors import DivergenceError, InputError, Stopped
from resode.gradients import Checkpointed, Reversible, Stored
from resode.integrators import Momentum
from resode.models import create
from resode.models.budget import chain_owners, gradient_of
from resode.stages import Stage
from resode.training import Callback, Experiment
from resode.training.launch import train
from resode.training.setup.execution import compiled
from resode.training.setup.extension import DynamicExtension, ExtensionSettings
from resode.training.setup.memory import StepMemory

DIGITS = {"name": "test", "data": {"source": "digits", "validation": 200}, "epochs": 2, "precision": "fp32"}
NET = {"name": "digits_resnet14", "widths": [4, 8, 8]}


def experiment(model, **keys):
    return Experiment.from_values({**DIGITS, "model": model, **keys}, "test")


def memory_of(asked):
    """The memory of a step on the digits."""
    return StepMemory.of(asked, (1, 8, 8))


def reconstruction_error(network, inputs):
    extension = DynamicExtension(network, memory_of(experiment(NET)), ExtensionSettings(None, None, ()))
    return extension.drift(inputs)


def methods_of(module):
    return [gradient_of(part) for part in chain_owners(module)]


class Listener(Callback):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


class Interrupting(Callback):
    """Ctrl-C in the second epoch."""

    def stepped(self, epoch, step, loss):
        if (epoch, step) == (1, 3):
            os.kill(os.getpid(), signal.SIGINT)


def metrics(run):
    with (run.path / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- budgets


def least_budget(model):
    network = create(**model)
    memory = memory_of(experiment(model, memory_budget=10**9))
    choice = memory.choose(network)
    assert choice.name == "stored"
    assert "1.00 GB: stored" in memory.describe(network, choice)
    with pytest.raises(
        InputError, match=r"no gradient method meets it.* give [\d.]+ MB, or a smaller batch"
    ) as e:
        memory_of(experiment(model, memory_budget=10**6)).choose(network)
    return float(str(e.value).split("give ")[1].split(" MB")[0])


def test_a_budget_chooses_once_and_the_run_keeps_the_choice(tmp_path):
    megabytes, listener = least_budget(NET), Listener()
    asked = experiment(NET, memory_budget=f"{megabytes}MB")
    assert asked.memory_budget == round(megabytes * 10**6)
    result = train(None, asked, out=tmp_path / "run", callback=listener)
    assert any(line.startswith(f"memory budget {megabytes:.1f} MB: checkpointed") for line in listener.lines)
    stored = result.run.read_experiment()
    assert stored.gradients is not None
    (method,) = methods_of(result.module)
    assert method.plan is not None
    assert methods_of(create(**NET, gradient=stored.gradients[0])) == [method]
    plain = train(None, experiment(NET), out=tmp_path / "plain")
    for name, tensor in plain.module.state_dict().items():
        assert torch.equal(result.module.state_dict()[name], tensor), name


def test_the_smallest_budget_that_is_named_is_met_and_no_smaller_one():
    megabytes, network = least_budget(NET), create(**NET)
    memory = memory_of(experiment(NET, memory_budget=round(megabytes * 10**6)))
    needed = sum(memory.fixed_bytes(network)) + memory.choose(network).activation_bytes
    assert needed <= round(megabytes * 10**6)
    with pytest.raises(InputError, match="no gradient method meets it"):
        memory_of(experiment(NET, memory_budget=round((megabytes - 0.2) * 10**6))).choose(network)


@pytest.mark.parametrize("text", ["1e9", "1GB", "1000 MB", 10**9, 1e9])
def test_a_budget_is_given_in_any_usual_form(text):
    assert experiment(NET, memory_budget=text).memory_budget == 10**9


def test_an_interrupted_run_resumes_with_what_the_budget_chose(tmp_path):
    asked = experiment(NET, memory_budget=f"{least_budget(NET)}MB")
    whole = train(None, asked, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(None, asked, out=tmp_path / "run", callback=Interrupting())
    resumed = train(None, asked, out=tmp_path / "run", resume=True)
    assert methods_of(resumed.module) == methods_of(whole.module)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], tensor)


def test_a_budget_holds_after_a_change_of_the_network(tmp_path):
    """Twice as many steps, or twisted ones, keep more: the methods are chosen again."""
    model = {"name": "dynamicblocks", "widths": [4, 4, 4], "states": [0, 1, 2], "scheme": "euler"}
    asked = experiment(model, refine={"at": 0.5}, twist={"at": 0.7})
    network = create(**model, in_channels=1)
    plain = train(None, asked, out=tmp_path / "plain")
    memory = memory_of(asked)
    least = sum(memory.fixed_bytes(plain.module))
    least += min(c.activation_bytes for c in memory.choices(plain.module).smallest_by_kind())
    assert methods_of(network) == [Stored()] * 2
    result = train(None, asked.replace(memory_budget=least), out=tmp_path / "run")
    assert any(isinstance(method, Checkpointed) for method in methods_of(result.module))
    for keys in ({}, {"gradients": ["checkpointed"] * 2}):  # by hand, too; both would fit until then
        with pytest.raises(InputError, match="no gradient method meets it"):
            train(None, asked.replace(memory_budget=least - 1000, **keys), out=tmp_path / "small")
        assert not (tmp_path / "small").exists()
    for name, tensor in plain.module.state_dict().items():
        assert torch.equal(result.module.state_dict()[name], tensor), name


# ---------------------------------------------------------------- drift


def small(g):
    """A reversible network whose inverse amplifies rounding by 1 / g a step."""
    momentum = {"name": "momentum", "g": g}
    field = {"name": "preactivation", "norm": "batch"}
    stage = {"width": 8, "field": field, "integrator": momentum, "states": 12, "gradient": "reversible"}
    return {"name": "dynamic", "stages": [stage]}


SMALL = small(0.5)
MILD = small(0.9)  # rounding grows by 0.9^-12 = 3.5 in all: also bf16 keeps its gradients


def test_drift_is_recorded_each_epoch(tmp_path):
    rows = metrics(train(None, experiment(SMALL), out=tmp_path / "run").run)
    errors = [float(row["reconstruction_error"]) for row in rows]
    assert len(errors) == 2
    assert all(0 < error < 1e-2 for error in errors)
    rows = metrics(train(None, experiment(NET), out=tmp_path / "plain").run)
    assert [row["reconstruction_error"] for row in rows] == ["", ""]


def test_a_run_that_drifts_falls_back_and_stays_so(tmp_path):
    listener = Listener()
    result = train(None, experiment(SMALL, drift={"limit": 1e-9}), out=tmp_path / "run", callback=listener)
    (line,) = (line for line in listener.lines if "differ from the first ones" in line)
    assert "epoch 1:" in line
    assert "checkpointed gradients from here on" in line
    assert methods_of(result.module) == [Checkpointed()]
    assert [bool(row["reconstruction_error"]) for row in metrics(result.run)] == [True, False]


def test_a_run_that_has_fallen_back_resumes_with_checkpointed_gradients(tmp_path):
    asked = experiment(SMALL, drift={"limit": 1e-9})
    whole = train(None, asked, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(None, asked, out=tmp_path / "run", callback=Interrupting())
    resumed = train(None, asked, out=tmp_path / "run", resume=True)
    assert methods_of(resumed.module) == [Checkpointed()]
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], tensor), name


def test_a_run_that_drifts_stops_on_request(tmp_path):
    asked = experiment(SMALL, drift={"limit": 1e-9, "beyond": "stop"})
    with pytest.raises(DivergenceError, match=r"differ from the first ones by .*drift.limit 1e-09"):
        train(None, asked, out=tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_measuring_drift_changes_nothing():
    torch.manual_seed(0)
    network, x = create(**SMALL), torch.randn(4, 3, 8, 8)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    random = torch.get_rng_state()
    error = reconstruction_error(network, x)
    assert 1e-7 < error < 1e-2
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert reconstruction_error(create("he_resnet8"), x) is None


def test_overflow_counts_as_drift(monkeypatch):
    network, x = create(**SMALL), torch.randn(4, 3, 8, 8)
    scheme = type(network.stages[0].stage.integrator)
    inverse = scheme.inverse
    monkeypatch.setattr(scheme, "inverse", lambda *of: tuple(torch.nan * t for t in inverse(*of)))
    assert reconstruction_error(network, x) == float("inf")


def test_methods_by_hand_are_checked_before_the_run_begins(tmp_path):
    stage = {**SMALL["stages"][0], "states": 15, "gradient": "stored"}
    model = {"name": "dynamic", "stages": [stage]}
    for keys, message in (
        ({"gradients": "reversible"}, "amplifies the rounding of float32"),
        ({"gradients": ["stored", "stored"]}, "2 methods given, the network takes 1"),
        (
            {"gradients": "stored", "memory_budget": "1MB"},
            "more than memory_budget 1.0 MB: remove gradients",
        ),
    ):
        with pytest.raises(InputError, match=message):
            train(None, experiment(model, **keys), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_falling_back_keeps_the_budget(tmp_path):
    network = create(**SMALL, in_channels=1)
    memory = memory_of(experiment(SMALL))
    choices = memory.choices(network)
    room = next(
        c.activation_bytes
        for c in choices.smallest_by_kind(allow_reversible=False)
        if c.name == "checkpointed, two levels"
    )
    room += sum(memory.fixed_bytes(network)) + 1000
    asked = experiment(SMALL, memory_budget=room, drift={"limit": 1e-9})
    result = train(None, asked, out=tmp_path / "run")
    rows = metrics(result.run)
    assert all(not isinstance(method, Reversible) for method in methods_of(result.module))
    assert memory_of(asked).choose(result.module)
    assert len(rows) == 2


def test_drift_grows_with_the_amplification_and_anchors_bound_it():
    def drift(steps, anchor=None):
        torch.manual_seed(0)
        stage = Stage(4, "antisymmetric", Momentum(0.5), steps, gradient=Reversible(anchor))
        return DynamicBlock(stage).drift(torch.randn(2, 4, 5, 5)).item()

    assert drift(4) < drift(8) / 4 < drift(12) / 16
    assert drift(12, anchor=4) < drift(12) / 16


# ---------------------------------------------------------------- what goes together


@pytest.mark.parametrize(
    "model", [{**NET, "gradient": "checkpointed"}, MILD], ids=["checkpointed", "reversible"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_averages_clipping_and_precision_work_with_every_method(model, precision, tmp_path):
    """Training is that with stored gradients: bit for bit, or up to the rounding of recovered states."""
    keys = {"average": {"decay": 0.9, "samples": 256}, "clip_norm": 0.5, "precision": precision, "epochs": 1}
    asked = experiment(model, **keys)
    found = train(None, asked, out=tmp_path / "run")
    if model is MILD:  # where stored states are bf16, recovered ones are fp32: training differs
        stored = {**MILD, "stages": [{**MILD["stages"][0], "gradient": "stored"}]}
        expected = train(None, experiment(stored, **keys), out=tmp_path / "stored")
        for split in ("train", "test"):
            loss = expected.summary[split]["loss"]
            assert found.summary[split]["loss"] == pytest.approx(loss, rel=2e-3)  # 2e-4 over four seeds
        return
    expected = train(None, experiment(NET, **keys), out=tmp_path / "stored")
    for name, tensor in expected.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], tensor), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    "model", [{**NET, "gradient": "checkpointed"}, small(0.99)], ids=["checkpointed", "reversible"]
)
def test_the_units_between_recomputations_are_compiled(model):
    torch.manual_seed(0)
    plain = create(**{**model, "in_channels": 3})
    network = copy.deepcopy(plain)
    x = torch.randn(8, 3, 8, 8)

    def gradients(net, forward):
        nn.functional.cross_entropy(forward(x), torch.arange(8)).backward()
        return {name: p.grad for name, p in net.named_parameters()}

    made = compiled(network)
    assert made is network
    assert torch._dynamo.config.recompile_limit >= 64
    units = [u for part in chain_owners(network) for u in _compiled_parts(part)]
    assert units
    assert all(unit._compiled_call_impl is not None for unit in units)
    expected, found = gradients(plain, plain), gradients(network, made)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(network.named_buffers())[name], buffer, rtol=1e-4, atol=1e-5)


def _compiled_parts(part):
    return list(part.controls) if isinstance(part, DynamicBlock) else list(part.units())


def test_gradients_accumulate_over_two_batches():
    torch.manual_seed(0)
    for model in ({**NET, "gradient": "checkpointed", "in_channels": 3}, SMALL):
        network = create(**model)
        network.eval()  # the same statistics in every batch
        x = torch.randn(8, 3, 8, 8)
        network(x).square().sum().backward()
        whole = {name: p.grad.clone() for name, p in network.named_parameters()}
        network.zero_grad()
        for half in x.chunk(2):
            assert not isinstance(methods_of(network)[0], Stored)
            network(half).square().sum().backward()
        for name, p in network.named_parameters():
            torch.testing.assert_close(p.grad, whole[name], rtol=1e-3, atol=1e-4)
