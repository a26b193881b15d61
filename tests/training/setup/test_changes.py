"""Twisting during training: the run continues with a twisted network and loses nothing."""

import pytest
import torch
from torch import nn

import resode
from resode import training
from resode.errors import InputError, Stopped
from resode.models import DynamicNet
from resode.models.twisting import twisted_convolutions
from resode.operators.twist import TwistConv2d
from resode.training import Experiment
from resode.training.launch import train
from resode.training.optim import optimizers
from resode.training.records import checkpoints
from resode.training.setup.changes import zero_extended
from tests.training.loop.test_dynamic import dynamic, trainer_of
from tests.training.loop.test_session import Listener, StopAt, assert_same

TINY = {
    "epochs": 2,
    "batch_size": 512,
    "precision": "fp32",
    "model": {"name": "digits_resnet8", "widths": [4, 4, 8]},
}
TWIST = {"twist": [{"at": 0.3, "where": [1]}, {"at": 0.7, "where": ["layer3.*"], "tie": "free"}]}


def digits(**settings) -> Experiment:
    """A few steps of a narrow ResNet on digits."""
    return Experiment.from_recipe("quickstart", TINY | settings)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"average": {"decay": 0.9, "samples": 300}},
        {"optimizer": {"name": "adamw", "lr": 1e-3}, "clip_norm": 1.0},
    ],
)
def test_a_twisted_run_resumes_to_the_same_bits(tmp_path, variant):
    experiment = digits(**TWIST, **variant)
    train(None, experiment, out=tmp_path / "whole")
    for _ in range(4):  # before, at and after the twists at iterations 2 and 4
        with pytest.raises(Stopped):
            train(None, experiment, out=tmp_path / "parts", resume=True, callback=StopAt(1))
    train(None, experiment, out=tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_reports_and_saves_what_it_twisted(tmp_path):
    listener = Listener()
    result = train(None, digits(**TWIST), out=tmp_path / "run", callback=listener)
    lines = [line for line in listener.lines if "twisted" in line]
    assert [line.partition(",")[0] for line in lines] == [
        "iteration 2: twisted (conformal)",
        "iteration 4: twisted (free)",
    ]
    for path in (result.run.path, checkpoints.stored(result.run.checkpoints)[-1]):
        again = training.load(path)
        ties = {item.name: item.layer.tie for item in twisted_convolutions(again)}
        assert ties == {
            "layer1.0.conv1": "conformal",
            "layer1.0.conv2": "conformal",
            "layer3.0.conv1": "free",
            "layer3.0.conv2": "free",
        }
        assert all(item.layer.twist.abs().max() > 0 for item in twisted_convolutions(again))
        for p, q in zip(result.module.parameters(), again.parameters(), strict=True):
            assert torch.equal(p, q)
    assert result.summary["parameters"] == sum(p.numel() for p in again.parameters())


def test_a_finished_twisted_run_is_loaded_into_a_module_of_the_user(tmp_path):
    experiment = digits(**TWIST)
    modules = [resode.create(**TINY["model"], in_channels=1) for _ in range(2)]
    result = train(modules[0], experiment, out=tmp_path / "run")
    again = train(modules[1], experiment, out=tmp_path / "run", resume=True)
    for p, q in zip(result.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_checkpoint_before_the_twist_is_plain(tmp_path):
    with pytest.raises(Stopped):
        train(None, digits(**TWIST), out=tmp_path / "run", callback=StopAt(2))
    assert not twisted_convolutions(training.load(tmp_path / "run"))


def test_twisting_transfers_weights_momentum_and_average():
    trainer = trainer_of(digits(twist=[{"at": 0.3}], average={"decay": 0.9, "samples": 300}))
    for _ in range(2):
        trainer.step()
    before = trainer.module.eval()
    x = torch.randn(3, 1, 8, 8)
    y = before(x)
    momentum = dict(optimizers.state_tensors(trainer.optimizer, before))
    average = {name: tensor.clone() for name, tensor in trainer.average.parameters.items()}
    trainer.change_where_due()
    after = trainer.module.eval()
    torch.testing.assert_close(after(x), y)
    found = dict(optimizers.state_tensors(trainer.optimizer, after))
    assert momentum.keys() < found.keys()
    for path, tensor in found.items():
        assert torch.equal(tensor, momentum.get(path, torch.zeros_like(tensor))), path
    assert list(trainer.average.parameters) == [name for name, _ in after.named_parameters()]
    for name, tensor in trainer.average.parameters.items():
        assert torch.equal(tensor, average.get(name, torch.zeros_like(tensor))), name


def test_frozen_parameters_stay_so_and_are_averaged(tmp_path):
    module = resode.create(**TINY["model"], in_channels=1)
    module.conv1.weight.requires_grad_(False)
    experiment = digits(twist=[{"at": 0.3}], average={"decay": 0.9, "samples": 300})
    result = train(module, experiment, out=tmp_path / "run")
    assert not result.module.conv1.twist.requires_grad
    assert result.module.conv1.twist.abs().max() == 0
    assert result.module.layer1[0].conv1.twist.abs().max() > 0


def test_a_network_of_dynamic_blocks_is_refined_and_twisted(tmp_path):
    experiment = dynamic(refine=[{"at": 0.3}], twist=[{"at": 0.3, "where": [1]}, {"at": 0.7, "tie": "odd"}])
    train(None, experiment, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(None, experiment, out=tmp_path / "parts", callback=StopAt(3))
    again = train(None, experiment, out=tmp_path / "parts", resume=True).module
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert isinstance(again, DynamicNet)
    stages = [block.stage for block in again.blocks()]
    assert [stage.states.steps for stage in stages] == [4] * len(stages)
    assert [stage.field.twist.tie for stage in stages] == ["conformal", *["odd"] * (len(stages) - 1)]
    assert [block.stage for block in training.load(tmp_path / "whole").blocks()] == stages


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"twist": [{"at": 0.5, "where": [7]}]}, "twist: .*no 3x3 convolution in stage 7"),
        ({"twist": [{"at": 0.5, "where": ["layer9.*"]}]}, "twist: .*no convolution is named 'layer9"),
        ({"twist": [{"at": 0.5}, {"at": 0.2}]}, "the times `at` of twist must increase"),
        ({"twist": [{"at": 0.5, "tie": "conformel"}]}, r"twist\.0\.tie"),
        ({"twist": [{"at": 0.5, "tie": "mixed", "degree": 2}]}, "mixed tie is of degree 1"),
        ({"twist": [{"at": 1.5}]}, r"twist\.0\.at"),
        ({"twist": [{"at": 0.3}, {"at": 0.6}]}, "twist: nothing to twist"),
    ],
)
def test_a_mistake_is_refused_before_data_is_read(monkeypatch, settings, message):
    monkeypatch.setattr("resode.training.setup.data.load", lambda *_, **__: pytest.fail("data was read"))
    with pytest.raises(InputError, match=message):
        train(None, digits(**settings))


def test_step_counts_of_new_parameters_are_zero():
    module = nn.Sequential(TwistConv2d(2, 2, 3))
    known = {"0.weight": torch.tensor(5.0), "0.bias": torch.tensor(5.0)}
    extended = zero_extended(module)(known)
    assert {name: t.shape for name, t in extended.items()} == dict.fromkeys(extended, torch.Size([]))
    assert extended["0.twist"] == 0


def test_one_twist_and_one_stage_need_no_list():
    experiment = digits(twist={"at": 0.5, "where": 1})
    assert [(t.at, t.where) for t in experiment.twist] == [(0.5, (1,))]
    assert experiment.changes == list(experiment.twist)
    with pytest.raises(InputError, match="twist"):
        digits(twist="conformal")
