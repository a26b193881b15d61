"""The bench: what it measures is of the recipe, and the plain loop is plain."""

import json

import pytest
import torch

from resode.analysis.bench import PlainLoop, TransformedImages, bench
from resode.cli import main
from resode.gradients import Stored
from resode.models.budget import chain_owners, gradient_of
from resode.training import Experiment
from resode.training.setup.preparation import prepare

SMALL = {"model.widths": [4, 4, 8], "precision": "fp32", "model.gradient": "checkpointed"}

COMPILED = {"model.widths": [4, 4, 8], "precision": "fp32", "compile": True}


@pytest.fixture
def setup():
    return prepare(Experiment.from_recipe("quickstart", SMALL))


def test_the_plain_loop_is_the_same_network_stored_and_contiguous(setup):
    plain = PlainLoop(setup)
    assert [gradient_of(part) for part in chain_owners(plain.module)] == [Stored()]
    assert not any(isinstance(gradient_of(part), Stored) for part in chain_owners(setup.module))
    weight = next(p for p in plain.module.parameters() if p.ndim == 4)
    assert weight.is_contiguous()
    for name, tensor in setup.module.state_dict().items():
        assert torch.equal(plain.module.state_dict()[name], tensor)
    before = setup.module.state_dict()["conv1.weight"].clone()
    assert plain.step() == plain.loaded_step() == plain.predict() == setup.experiment.batch_size
    assert not torch.equal(plain.module.state_dict()["conv1.weight"], before)
    assert torch.equal(setup.module.state_dict()["conv1.weight"], before)


def test_images_of_the_plain_loader_are_crops_of_the_images(setup):
    images = TransformedImages(setup.data.dataset.train, setup.data.train_index, setup.training)
    torch.manual_seed(0)
    inputs, label = images[3]
    at = setup.data.train_index[3]
    assert inputs.shape == (1, 8, 8)
    assert label == setup.data.dataset.train.labels[at]
    pixels = torch.from_numpy(setup.data.dataset.train.pixels[at].copy()).permute(2, 0, 1)
    values = {round(v, 5) for v in ((pixels.float() / 255 - 0.5) / 0.25).flatten().tolist()} | {-2.0}
    assert {round(v, 5) for v in inputs.flatten().tolist()} <= values


def test_the_shares_of_a_step_are_a_whole(setup):
    found = bench(setup, seconds=0.5, rounds=1)
    assert sum(found.phases.values()) == pytest.approx(1)
    assert min(found.phases.values()) > 0
    assert found.operations < found.matrix_peak
    assert found.frozen_inference is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_what_is_compiled_is_evaluated_frozen_too():
    found = bench(prepare(Experiment.from_recipe("quickstart", COMPILED)), seconds=0.5, rounds=1)
    assert found.frozen_inference > 0


def test_the_command_prints_one_object(capsys):
    words = ["bench", "quickstart", "--json", "--seconds", "0.5", "--set", "model.widths=[4,4,8]"]
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert not exit_.value.code
    record = json.loads(capsys.readouterr().out)
    for key in ("train", "inference", "plain_train", "loader_train", "plain_inference"):
        assert record[f"{key}_images_per_second"] > 0
    ratio = record["train_images_per_second"] / record["plain_train_images_per_second"]
    assert record["train_ratio"] == pytest.approx(ratio, rel=0.01)
    assert record["peak_memory_bytes"] > 10**7
    assert record["environment"]["torch"] == torch.__version__


@pytest.mark.parametrize("seconds", ["0", "-1", "1e9"])
def test_a_time_that_is_none_is_refused(seconds, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "quickstart", "--seconds", seconds])
    assert exit_.value.code == 2
    assert "between 0 and 3600" in capsys.readouterr().err
