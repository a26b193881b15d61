"""Training networks of dynamic blocks: multilevel, smooth in time, counted, checked beforehand."""

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import resode
from resode import training, weights
from resode.blocks import DynamicBlock
from resode.controls import controls_of
from resode.errors import DivergenceError, InputError, IntegrityError, Stopped
from resode.models import DynamicNet
from resode.models.regridding import regridding
from resode.statistics import RECALIBRATION, estimate_statistics
from resode.training import Experiment
from resode.training.launch import train
from resode.training.loop.step import Trainer
from resode.training.optim import optimizers
from resode.training.records import checkpoints
from resode.training.records.locations import weights_file
from resode.training.setup.preparation import prepare
from tests.training.loop.test_session import Listener, StopAt, assert_same, metrics

TINY = {
    "epochs": 2,
    "batch_size": 512,
    "precision": "fp32",
    "model": {"widths": [4, 6], "scheme": "heun", "states": [0, 1, 2], "layer": "double", "norm": "batch"},
}
MULTILEVEL = {"refine": [{"at": 0.3}, {"at": 0.7, "controls": "keep"}]}  # iterations 2 and 4 of 6
WITHOUT = "the network has no dynamic blocks"


def dynamic(**settings) -> Experiment:
    """A few steps of one narrow block on digits, with statistics for each evaluation."""
    return Experiment.from_recipe("quickstart-parabolic", TINY | settings)


@pytest.fixture
def no_data(monkeypatch):
    """Reading data fails the test."""
    monkeypatch.setattr("resode.training.setup.data.load", lambda *_, **__: pytest.fail("data was read"))


def trainer_of(experiment) -> Trainer:
    return Trainer(prepare(experiment))


# ---------------------------------------------------------------- multilevel


@pytest.mark.parametrize(
    "variant",
    [
        {},
        pytest.param(
            {
                "optimizer.name": "adamw",
                "average": {"decay": 0.9, "samples": 300},
                "smoothness": {"total_variation": 1e-4, "dirichlet": 1e-3},
                "box": 0.3,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sgd", "adamw, average, smoothness, box"],
)
def test_a_refined_run_stopped_anywhere_ends_in_the_same_bits(tmp_path, variant):
    """Stopped before, at and after the refinements at iterations 2 and 4, and in the test evaluation."""
    experiment = dynamic(**MULTILEVEL, **variant)
    train(None, experiment, out=tmp_path / "whole")
    for callback in (StopAt(1), StopAt(1), StopAt(1), StopAt(1), StopAt(None, 2)):
        with pytest.raises(Stopped):
            train(None, experiment, out=tmp_path / "parts", resume=True, callback=callback)
    train(None, experiment, out=tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_refined_run_is_written_with_its_own_grids(tmp_path):
    listener = Listener()
    result = train(None, dynamic(**MULTILEVEL), out=tmp_path / "run", callback=listener)
    lines = [line for line in listener.lines if "finer time grids" in line]
    assert [line.split(":")[0] for line in lines] == ["iteration 2", "iteration 4"]
    for path in (result.run.path, checkpoints.stored(result.run.checkpoints)[-1]):
        again = training.load(path)
        for block in again.blocks():
            assert (block.stage.states.steps, block.controls.grid.steps) == (8, 4)
        assert all(
            torch.equal(p, q) for p, q in zip(result.module.parameters(), again.parameters(), strict=True)
        )
    coarse = sum(p.numel() for p in prepare(dynamic()).module.parameters())
    assert result.summary["parameters"] == sum(p.numel() for p in again.parameters()) > coarse
    first, second = metrics(result.run.path)
    stages = 2  # of Heun's method
    assert float(first["function_evaluations"]) == stages * (2 * 2 + 1 * 4) / 3
    assert float(second["function_evaluations"]) == stages * (1 * 4 + 2 * 8) / 3


def test_a_checkpoint_before_the_refinement_is_coarse(tmp_path):
    with pytest.raises(Stopped):
        train(None, dynamic(**MULTILEVEL), out=tmp_path / "run", callback=StopAt(2))
    assert training.load(tmp_path / "run").stages[0].stage.states.steps == 2


def test_a_finished_refined_run_is_loaded_into_a_module_of_the_user(tmp_path):
    experiment = dynamic(**MULTILEVEL)
    modules = [resode.create("dynamicblocks", in_channels=1, **TINY["model"]) for _ in range(2)]
    result = train(modules[0], experiment, out=tmp_path / "run")
    again = train(modules[1], experiment, out=tmp_path / "run", resume=True)
    for p, q in zip(result.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(p, q)


def test_refining_transfers_theta_momentum_and_average_and_estimates_statistics():
    experiment = dynamic(refine=[{"at": 0.3}], average={"decay": 0.9, "samples": 300})
    trainer = trainer_of(experiment)
    for _ in range(2):
        trainer.step()
    before = trainer.module
    tensors = {
        "theta": {n: p.detach().clone() for n, p in before.named_parameters()},
        "momentum": {
            n.partition("/")[2]: t.clone() for n, t in optimizers.state_tensors(trainer.optimizer, before)
        },
        "average": {n: t.clone() for n, t in trainer.average.parameters.items()},
    }
    trainer.change_where_due()
    after = trainer.module
    assert trainer.position.level == 1
    found = {
        "theta": {n: p.detach() for n, p in after.named_parameters()},
        "momentum": {n.partition("/")[2]: t for n, t in optimizers.state_tensors(trainer.optimizer, after)},
        "average": trainer.average.parameters,
    }
    for kind, old in tensors.items():
        new = found[kind]
        assert list(new) == [name for name, _ in after.named_parameters()], kind
        for j in range(3):  # node j of the old is node 2 j of the new; a mean lies between
            name = "stages.0.controls.{}.conv1.weight"
            torch.testing.assert_close(new[name.format(2 * j)], old[name.format(j)], rtol=0, atol=0)
            if j:
                mean = (old[name.format(j - 1)] + old[name.format(j)]) / 2
                torch.testing.assert_close(new[name.format(2 * j - 1)], mean)
        assert torch.equal(new["head.linear.weight"], old["head.linear.weight"])
        theta = [t for name, t in new.items() if name.startswith("stages.0.controls.")]
        assert all(t.abs().max() > 0 for t in theta if t.ndim == 4), kind
    expected = copy.deepcopy(after)
    for statistics in expected.stages[0].statistics:
        statistics.reset()
    estimate_statistics(expected, trainer.setup.statistics_inputs(RECALIBRATION))
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(dict(after.named_buffers())[name], buffer, msg=name)
    assert after.stages[0].statistics[0].norm1.num_batches_tracked > 0


def test_estimated_statistics_of_evaluations_are_those_by_hand():
    """For Euler and N1 applied to y: the statistics of evaluation k are those of the state y_k."""
    torch.manual_seed(0)
    net = DynamicNet(
        [resode.Stage(4, {"name": "preactivation", "norm": "batch"}, "euler", [0, 1, 2, 3])],
        stem=1,
        classes=3,
    )
    batches = torch.randn(4, 8, 1, 6, 6).unbind()
    with torch.no_grad():
        for statistics in net.stages[0].statistics:
            statistics.get_submodule("norm1").running_mean.fill_(7)
    by_hand = copy.deepcopy(net).train()
    with torch.no_grad():
        states = [torch.stack(by_hand.trajectory(x)[1]) for x in batches]  # (nodes, N, C, H, W) each
    estimate_statistics(net, batches)
    for k, statistics in enumerate(net.stages[0].statistics):
        norm = statistics.get_submodule("norm1")
        mean = torch.stack([y[k].mean((0, 2, 3)) for y in states]).mean(0)
        variance = torch.stack([y[k].var((0, 2, 3)) for y in states]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)
        assert norm.num_batches_tracked == 4
    assert net.stages[0].statistics[0].get_submodule("norm2").num_batches_tracked == 4


def test_a_refinement_at_the_very_end_still_happens(tmp_path):
    result = train(None, dynamic(refine=[{"at": 0.999}]), out=tmp_path / "run")
    assert result.module.stages[0].stage.states.steps == 4


# ---------------------------------------------------------------- regular in time


def test_smoothness_adds_its_gradient():
    """d/d theta_j of a |theta_{j+1} - theta_j|_1 + b/2 |...|^2 / h, at the first step."""
    a, b = 0.01, 0.1
    settings = {"model": TINY["model"] | {"states": [0, 0.5, 2]}, "optimizer.weight_decay": 0.0}
    plain = trainer_of(dynamic(**settings))
    smooth = trainer_of(dynamic(smoothness={"total_variation": a, "dirichlet": b}, **settings))
    initial = copy.deepcopy(dict(plain.module.named_parameters()))
    for trainer in (plain, smooth):
        trainer.step()
    gradients = [{n: p.grad for n, p in trainer.module.named_parameters()} for trainer in (plain, smooth)]
    for name, theta in initial.items():
        expected = torch.zeros_like(theta)
        if ".controls." in name:
            stage, _, rest = name.partition(".controls.")
            j, _, parameter = rest.partition(".")
            for i, h in ((0, 0.5), (1, 1.5)):
                pair = [initial[f"{stage}.controls.{n}.{parameter}"].detach() for n in (i, i + 1)]
                difference = pair[1] - pair[0]
                slope = a * difference.sign() + b * difference / h
                expected += {i: -slope, i + 1: slope}.get(int(j), torch.zeros_like(slope))
        torch.testing.assert_close(gradients[1][name] - gradients[0][name], expected, rtol=1e-4, atol=1e-6)


def test_the_box_holds_after_every_step_on_controls_alone():
    trainer = trainer_of(dynamic(box=0.05))
    for _ in range(3):
        trainer.step()
        sizes = [
            p.abs().max().item() for controls in controls_of(trainer.module) for p in controls.parameters()
        ]
        assert max(sizes) == pytest.approx(0.05)
    assert trainer.module.head.linear.weight.abs().max() > 0.05


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"smoothness": {"dirichlet": 1.0}}, ["smoothness"]),
        ({"box": 1.0, "refine": [{"at": 0.5}]}, ["box", "refine"]),
        ({"box": {"controls": 1.0, "linear": 1.0}}, ["box"]),
    ],
)
def test_without_dynamic_blocks_there_is_nothing_to_act_on(no_data, tmp_path, settings, keys):
    for module in (None, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))):
        with pytest.raises(InputError) as error:
            train(module, Experiment.from_recipe("quickstart", settings), out=tmp_path / "run")
        assert [line.split(":")[0] for line in error.value.messages] == keys
        assert all(WITHOUT in line for line in error.value.messages)
        assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what is reported


def test_evaluations_of_an_adaptive_solver_are_counted_forwards_and_backwards(tmp_path):
    pytest.importorskip("torchdiffeq")
    model = {"name": "neural_ode", "widths": [2, 2, 2], "rtol": 0.5, "atol": 0.5}
    experiment = dynamic(model=model, batch_size=1024)
    torch.manual_seed(experiment.seed)
    trained = resode.create(**model, in_channels=1)
    calls = []
    for block in trained.stages:
        for node in block.controls:
            node.register_forward_hook(lambda m, *_: calls.append(1) if m.training else None)
    train(trained, experiment, out=tmp_path / "whole")
    counted = [float(row["function_evaluations"]) for row in metrics(tmp_path / "whole")]
    assert sum(counted) * 2 == len(calls)  # 1,221 images in batches of 1,024
    assert min(counted) > 1 + 6 + 6  # dopri5 needs six new evaluations for a step, here and back
    with pytest.raises(Stopped):
        train(None, experiment, out=tmp_path / "parts", callback=StopAt(3))
    train(None, experiment, out=tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_networks_without_dynamic_blocks_have_no_evaluations(tiny, tmp_path):
    train(None, tiny, out=tmp_path / "run")
    assert {row["function_evaluations"] for row in metrics(tmp_path / "run")} == {""}


def test_a_step_beyond_the_stability_bound_is_reported_before_training(tmp_path):
    class Order(Listener):
        def stepped(self, epoch, step, loss):
            self.lines.append("a step")

    model = {
        "name": "dynamicblocks",
        "widths": [4, 8],
        "scheme": "euler",
        "states": [0, 9, 18],
        "norm": "none",
    }
    listener = Order()
    train(None, dynamic(model=model, epochs=1, clip_norm=1e-6), out=tmp_path / "run", callback=listener)
    (warning,) = [n for n, line in enumerate(listener.lines) if line.startswith("warning: stage 1: Euler")]
    assert "linearly stable up to h = " in listener.lines[warning]
    assert "TimeGrid.refine" in listener.lines[warning]
    assert warning < listener.lines.index("a step")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.states": [0, 1, 1]}, "a time grid has to increase: 1 is followed by 1"),
        ({"model.states": "two"}, "a time grid of 'two'"),
        ({"model.scheme": "euler", "model.controls": [0, 1, 2]}, "touches the control nodes 2 of"),
        ({"model.scheme": "rk5"}, "unknown integrator 'rk5'; did you mean 'rk4'?"),
        (
            {"model.scheme": "symplectic_euler", "model.widths": [5, 8]},
            "the width 5 has to be a multiple of 2",
        ),
        ({"model.scheme": "two_step_midpoint", "model.states": [0, 1, 3]}, "uniform"),
        ({"model.gradient": "reversible"}, "has no inverse"),
    ],
)
def test_impossible_settings_are_refused_before_any_data_is_read(no_data, tmp_path, settings, message):
    listener = Listener()
    experiment = dynamic(**settings)
    with pytest.raises(InputError) as error:
        train(None, experiment, out=tmp_path / "run", callback=listener)
    (line, *others) = error.value.messages
    assert line.startswith("quickstart-parabolic: ")
    assert message in line
    assert others == []
    assert listener.lines == []
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_accepts_all_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    estimate = training.estimate(dynamic(**MULTILEVEL, smoothness={"dirichlet": 0.1}, box=1.0))
    assert estimate.seconds > 0
    assert list(tmp_path.iterdir()) == []


def test_divergence_after_a_refinement_names_the_layer_of_the_refined_network(tmp_path):
    """The first epoch has learning rate 0 and refines; the second diverges and is replayed."""
    warmup = {"epochs": 1, "factor": 0.0, "shape": "constant"}
    experiment = dynamic(
        refine=[{"at": 0.3}],
        optimizer={"name": "sgd", "lr": 1e30},
        schedule={"name": "constant", "warmup": warmup},
    )
    with pytest.raises(
        DivergenceError, match=r"diverged at iteration [3-5] \(epoch 2.*the output of layer '"
    ) as error:
        train(None, experiment, out=tmp_path / "run")
    assert "the replay stayed finite" not in str(error.value)
    newest, _ = checkpoints.newest(tmp_path / "run" / "checkpoints")
    assert newest.state["level"] == 1


def test_a_field_that_no_file_can_name_trains_and_refines(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Linear(resode.fields.Field):
        def build(self, width):
            return nn.Conv2d(width, width, 1)

    net = DynamicNet([resode.Stage(4, Linear(), "euler", [0, 1, 2])], stem=1)
    result = train(net, dynamic(refine=[{"at": 0.5}], epochs=1), out=tmp_path / "run")
    assert weights.read_card(result.run.model).specification is None
    assert result.module.stages[0].stage.states.steps == 4


# ---------------------------------------------------------------- the optimizer's state to begin with


@pytest.fixture
def regridded(tmp_path):
    """A run, and its network on doubled grids with the optimizer's state beside it."""
    trained = train(None, dynamic(epochs=1), out=tmp_path / "run")
    source = training.records.locations.locate(trained.run.path)
    done = regridding(training.load(trained.run.path), states="double", controls="double")
    file = tmp_path / "fine.safetensors"
    made = weights.Specification("dynamic", done.module.options())
    weights.save(
        done.module, file, dataclasses.replace(weights.read_card(source.weights), specification=made)
    )
    optimizers.write_state(file, optimizers.carry_state(source.optimizer, done.transfer))
    return file


def test_training_begins_with_the_state_beside_the_weights(regridded, tmp_path):
    experiment = dynamic(init={"path": str(regridded), "optimizer": True})
    setup = prepare(experiment)
    assert isinstance(setup.module.stages[0], DynamicBlock)
    assert setup.module.stages[0].stage.states.steps == 4
    assert any("on other time grids" in note for note in setup.notes)
    state = load_file(optimizers.state_file(regridded))
    assert setup.optimizer_state.keys() == state.keys()
    run = train(None, experiment, out=tmp_path / "on").run
    init = run.read_experiment().init
    assert len(init.sha256) == len(init.optimizer_sha256) == 64
    other = train(None, dynamic(init={"path": str(regridded)}), out=tmp_path / "cold").run
    assert not torch.equal(
        load_file(run.model)["head.linear.weight"], load_file(other.model)["head.linear.weight"]
    )
    (tmp_path / "fine.optimizer.safetensors").write_bytes(
        optimizers.write_state(regridded, {n: t + 1 for n, t in state.items()}).read_bytes()
    )
    with pytest.raises(IntegrityError, match="the optimizer's state has changed"):
        train(None, Experiment.from_recipe(run.path), out=tmp_path / "again")


def test_the_very_first_step_uses_the_state(regridded):
    setup = prepare(dynamic(init={"path": str(regridded), "optimizer": True}))
    trainer = Trainer(setup)
    trainer.load_optimizer(setup.optimizer_state)
    for name, tensor in optimizers.state_tensors(trainer.optimizer, trainer.module):
        assert torch.equal(tensor, setup.optimizer_state[name])
    assert max(t.abs().max() for t in setup.optimizer_state.values()) > 0


def test_a_state_that_does_not_fit_is_refused(regridded, tmp_path):
    init = {"path": str(regridded), "optimizer": True}
    with pytest.raises(InputError, match=r"holds momentum_buffer, but adamw keeps exp_avg, exp_avg_sq, step"):
        prepare(dynamic(init=init, optimizer={"name": "adamw"}))
    state = load_file(optimizers.state_file(regridded))
    optimizers.write_state(regridded, dict(list(state.items())[1:]))
    with pytest.raises(InputError, match=r"does not fit the network: momentum_buffer/.* is missing"):
        prepare(dynamic(init=init))
    regridded.write_bytes((tmp_path / "run" / "model.safetensors").read_bytes())
    with pytest.raises(
        InputError, match=r"fine.optimizer.safetensors: belongs to other weights than .*fine.safetensors"
    ):
        prepare(dynamic(init=init))
    optimizers.state_file(regridded).write_bytes(b"x" * 100)
    with pytest.raises(IntegrityError, match="is not a valid safetensors file"):
        prepare(dynamic(init=init))
    optimizers.state_file(regridded).unlink()
    with pytest.raises(InputError, match=r"no such file .*set init.optimizer=false"):
        prepare(dynamic(init=init))


def test_weights_of_another_network_are_not_mistaken_for_a_regridded_one(regridded, tmp_path):
    model = TINY["model"] | {"layer": "parabolic"}
    with pytest.raises(InputError, match=r"holds a dynamic.*--set model.name=dynamic"):
        prepare(dynamic(model=model, init={"path": str(regridded)}))
    setup = prepare(dynamic(model={"name": "dynamic"}, init={"path": str(regridded)}))
    assert setup.module.stages[0].stage.states.steps == 4
    assert json.loads(json.dumps(setup.module.options())) == json.loads(
        json.dumps(training.load(weights_file(regridded)).options())
    )
