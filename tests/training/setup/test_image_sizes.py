"""Small images at first: which, when, and nothing else changes."""

import pytest
import torch

from resode.errors import InputError, Stopped
from resode.training import Experiment
from resode.training.estimation import estimate
from resode.training.launch import train
from resode.training.recipe.data import Sizing
from resode.training.setup.image_sizes import phases, resized, size_at
from tests.training.loop.test_dynamic import trainer_of
from tests.training.loop.test_session import StopAt, assert_same

TINY = {
    "epochs": 2,
    "batch_size": 512,
    "precision": "fp32",
    "model": {"name": "digits_resnet8", "widths": [4, 4, 8]},
}
SIZES = [{"until": 0.35, "size": 4}, {"until": 0.7, "size": 6}]


def digits(**settings) -> Experiment:
    return Experiment.from_recipe("quickstart", TINY | settings)


def test_each_iteration_has_its_size():
    sizes = [Sizing(until=0.25, size=16), Sizing(until=0.5, size=24)]
    assert [size_at(sizes, i, 8) for i in range(8)] == [16, 16, 24, 24, None, None, None, None]
    assert phases(sizes, 8) == [(0, 2), (2, 2), (4, 4)]
    assert phases([], 8) == [(0, 8)]
    assert phases([Sizing(until=0.01, size=16)], 8) == [(0, 8)]
    late = [Sizing(until=0.95, size=16)]
    assert phases(late, 8) == [(0, 7), (7, 1)]  # the last iteration sees whole images
    assert [size_at(late, i, 8) for i in (6, 7)] == [16, None]


def test_images_are_scaled_linearly():
    """A linear ramp stays linear (away from its ends), a constant stays constant; memory format is kept."""
    ramp = torch.arange(32.0).expand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    half = resized(ramp, 16)
    assert half.shape == (2, 3, 16, 16)
    assert half.is_contiguous(memory_format=torch.channels_last)
    centres = 2 * torch.arange(16.0) + 0.5
    assert torch.allclose(half[0, 0, 3, 2:-2], centres[2:-2], atol=1e-5)
    assert torch.allclose(resized(torch.full((1, 3, 9, 12), 7.0), 6), torch.full((1, 3, 6, 8), 7.0))
    assert resized(ramp, None) is ramp
    assert resized(ramp, 32) is ramp


def test_half_precision_is_scaled_as_full_precision_is():
    u = torch.randn(2, 3, 8, 8).to(torch.bfloat16, memory_format=torch.channels_last)
    small = resized(u, 4)
    assert small.dtype == torch.bfloat16
    assert torch.equal(small, resized(u.float(), 4).bfloat16())


def test_a_last_batch_of_one_image_is_refused_before_training(tmp_path):
    """Where the last stage of a small image is a single pixel, a batch of one has no variance."""
    experiment = digits(batch_size=61, sizes=[{"until": 0.9, "size": 4}])
    with pytest.raises(InputError, match="batch"):
        train(None, experiment, out=tmp_path / "run")


def test_a_step_sees_the_size_of_its_iteration():
    trainer = trainer_of(digits(sizes=SIZES))
    seen = []
    trainer.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    for _ in range(trainer.steps):
        trainer.step()
    trainer.position.epoch, trainer.position.step = 1, 0
    for _ in range(trainer.steps):
        trainer.step()
    assert trainer.iterations == 6
    assert seen == [4, 4, 6, 6, 8, 8]


def test_whole_images_throughout_change_nothing(tmp_path):
    train(None, digits(), out=tmp_path / "none")
    train(None, digits(sizes=[{"until": 0.5, "size": 8}]), out=tmp_path / "whole")
    assert_same(tmp_path / "none", tmp_path / "whole")


def test_a_run_stopped_anywhere_ends_in_the_same_bits(tmp_path):
    train(None, digits(sizes=SIZES), out=tmp_path / "whole")
    for _ in range(4):
        with pytest.raises(Stopped):
            train(None, digits(sizes=SIZES), out=tmp_path / "parts", resume=True, callback=StopAt(1))
    train(None, digits(sizes=SIZES), out=tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_an_estimate_weighs_the_sizes():
    found = estimate(digits(sizes=SIZES))
    assert found.seconds >= 6 * found.step_seconds > 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([{"until": 0.5, "size": 9}], r"sizes: 9 is larger than the images of digits \(8x8\)"),
        ([{"until": 0.5, "size": 4}, {"until": 0.5, "size": 6}], "the times `until` of sizes must increase"),
        ([{"until": 1.0, "size": 4}], "cannot be 1: give a number above 0 and below 1"),
        ([{"until": 0.5, "size": 0}], "cannot be 0: give a whole number above 0"),
    ],
)
def test_mistakes_are_refused_before_training(tmp_path, sizes, message):
    with pytest.raises(InputError, match=message):
        train(None, digits(sizes=sizes), out=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.csv").exists()
