"""Runs: deterministic, resumable at any step, and nothing is lost."""

import csv
import dataclasses
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import resode
from resode import acceleration, atomic, training, weights
from resode.data import Dataset, Images
from resode.errors import DivergenceError, InputError, IntegrityError, ResourceError, Stopped
from resode.training import Callback, Experiment, Run
from resode.training.launch import train
from resode.training.records import checkpoints
from resode.training.records.environment import environment
from resode.training.setup import form
from resode.training.setup.preparation import prepare
from tests.conftest import DIGITS_IN_A_FLASH

VARIANTS = {
    "plain": {},
    "all options": {
        "augment.cutout": 2,
        "augment.flip": True,
        "augment.mixup": 0.3,
        "label_smoothing": 0.1,
        "clip_norm": 1.0,
        "average.decay": 0.9,
        "average.samples": 300,
        "optimizer.decay_norms": False,
    },
    "muon": {"optimizer.name": "muon", "optimizer.others.lr": 0.05},
    "adamw, bf16": {"optimizer.name": "adamw", "schedule.name": "cosine", "precision": "bf16"},
}
MEASURED = {"seconds", "images_per_second", "peak_memory_bytes"}


class StopAt(Callback):
    """Sends a signal at one step, or in the n-th batch of evaluation."""

    def __init__(self, iteration=None, evaluation=None, number=signal.SIGTERM):
        self.steps, self.evaluations = 0, 0
        self.iteration, self.evaluation, self.number = iteration, evaluation, number

    def stepped(self, epoch, step, loss):
        self.steps += 1
        if self.steps == self.iteration:
            os.kill(os.getpid(), self.number)

    def evaluating(self, done, samples):
        self.evaluations += 1
        if self.evaluations == self.evaluation:
            os.kill(os.getpid(), self.number)


class Listener(Callback):
    """Collects messages."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)]


def assert_same(first, second):
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert metrics(first) == metrics(second)
    scores = [json.loads((run / "summary.json").read_text()) for run in (first, second)]
    assert scores[0]["test"] == scores[1]["test"]
    assert scores[0]["validation"] == scores[1]["validation"]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_run_stopped_anywhere_ends_in_the_same_bits(tmp_path, variant):
    """Stopped in an epoch, in a validation, in the next epoch, in the test evaluation: the same bits."""
    settings = DIGITS_IN_A_FLASH | {"evaluation.batch_size": 100} | VARIANTS[variant]
    experiment = Experiment.from_recipe("quickstart", settings)
    train(None, experiment, out=tmp_path / "whole")
    for callback in (StopAt(3), StopAt(None, 2), StopAt(1), StopAt(None, 6, signal.SIGINT)):
        with pytest.raises(Stopped) as stopped:
            train(None, experiment, out=tmp_path / "parts", resume=True, callback=callback)
        assert stopped.value.exit_code == 128 + callback.number
        assert json.loads((tmp_path / "parts" / "ended.json").read_text())["status"] == "stopped"
    train(None, experiment, out=tmp_path / "parts", resume=True)
    assert not (tmp_path / "parts" / "ended.json").exists()
    assert_same(tmp_path / "whole", tmp_path / "parts")


class InterruptedForward(nn.Linear):
    """A network in whose first training step a signal arrives, as while it is compiled."""

    def __init__(self):
        super().__init__(64, 10)
        self.sent = False

    def forward(self, x):
        if self.training and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the step went on")
        return super().forward(x.flatten(1))


def test_a_signal_in_the_first_step_ends_it_at_once(tmp_path):
    """Compilation may take minutes; the run can go on from its beginning."""
    experiment = Experiment.from_recipe("quickstart", DIGITS_IN_A_FLASH)
    module = InterruptedForward()
    with pytest.raises(Stopped, match="stopped in the first step, at iteration 0") as stopped:
        train(module, experiment, out=tmp_path / "run")
    assert stopped.value.exit_code == 128 + signal.SIGINT
    result = train(module, experiment, out=tmp_path / "run", resume=True)
    assert result.run.finished


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(None, tiny.replace(seed=seed), out=tmp_path / name)
    assert_same(tmp_path / "a", tmp_path / "b")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ac")
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_a_run_is_rebuilt_from_its_directory_alone(tiny, tmp_path):
    first = train(None, tiny, out=tmp_path / "a").run.path
    train(None, Experiment.from_recipe(first), out=tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("called", "command"),
    [
        ("/venv/bin/resode", ["resode", "train", "quickstart"]),
        ("/venv/lib/resode/__main__.py", ["resode", "train", "quickstart"]),  # python -m resode
        ("my_resode_study.py", None),
    ],
)
def test_the_record_has_the_command_line_and_that_of_no_other_program(monkeypatch, called, command):
    monkeypatch.setattr("sys.argv", [called, "train", "quickstart"])
    assert environment(torch.device("cpu"))["command"] == command


def test_a_run_directory_holds_what_the_design_says(tiny, tmp_path):
    result = train(None, tiny, out=tmp_path / "run")
    run = result.run.path
    for name in ("experiment.yaml", "environment.json", "metrics.csv", "summary.json", "model.safetensors"):
        assert (run / name).is_file(), name
    newest, damaged = checkpoints.newest(run / "checkpoints")
    assert damaged == []
    assert newest.iteration == result.summary["iterations"] == 2 * 5  # 1,221 images in batches of 256
    summary = result.summary
    assert summary["status"] == "finished"
    assert summary["data"]["train"] + summary["data"]["validation"] == len(
        resode.load_data("digits").train.labels
    )
    confusion = torch.tensor(summary["test"]["confusion"])
    assert confusion.sum() == summary["test"]["samples"] == summary["data"]["test"]
    assert summary["test"]["top1_accuracy"] == pytest.approx(
        100 * confusion.diagonal().sum().item() / summary["test"]["samples"], abs=1e-5
    )
    assert result.test_error == summary["test"]["top1_error"]


def test_the_final_weights_give_the_error_of_the_summary(tiny, tmp_path):
    result = train(None, tiny.replace(average={"decay": 0.9}), out=tmp_path / "run")
    module = resode.load(tmp_path / "run" / "model.safetensors")
    test = resode.load_data("digits").test
    images = torch.from_numpy(test.pixels.copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        wrong = (module(module.preprocessing(images)).argmax(1).numpy() != test.labels).sum()
    assert 100 * wrong / len(test.labels) == pytest.approx(result.test_error, abs=1e-5)


def test_digits_are_learnt(tmp_path):
    """Ten epochs of the quickstart recipe: far above chance, or the loop does not learn."""
    experiment = Experiment.from_recipe("quickstart", {"epochs": 10, "precision": "fp32"})
    assert train(None, experiment, out=tmp_path / "run").test_error < 8


def test_a_module_of_the_user_is_trained_in_place(tiny, tmp_path):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = module[1].weight.detach().clone()
    result = train(module, tiny, out=tmp_path / "run")
    assert result.module is module
    assert not torch.equal(module[1].weight, before)
    again = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    training.train(again, tiny, out=tmp_path / "run", resume=True)  # finished: only its weights are read
    assert torch.equal(again[1].weight, module[1].weight)


def test_dropout_and_shared_parameters_resume_to_the_same_bits(tiny, tmp_path):
    def module():
        torch.manual_seed(2)
        shared = nn.Linear(32, 32)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), shared, nn.ReLU(), shared,
            nn.Linear(32, 10),
        )  # fmt: skip

    experiment = tiny.replace(average={"decay": 0.9, "samples": 300})
    train(module(), experiment, out=tmp_path / "whole")
    for callback in (StopAt(3), StopAt(None, 1)):
        with pytest.raises(Stopped):
            train(module(), experiment, out=tmp_path / "parts", resume=True, callback=callback)
    train(module(), experiment, out=tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_the_order_of_the_images_does_not_matter(tiny, tmp_path, monkeypatch):
    """The same content in another order or container trains to the same bits."""
    digits = resode.load_data("digits")
    shuffled = np.random.default_rng(0).permutation(len(digits.train))
    train_part = Images.of(digits.train.pixels[shuffled], digits.train.labels[shuffled])
    other = Dataset.of("digits", digits.classes, train_part, digits.test)
    assert other.fingerprint == digits.fingerprint
    experiment = tiny.replace(average={"decay": 0.9, "samples": 300}, augment={"mixup": 0.2, "crop": 1})
    train(None, experiment, out=tmp_path / "one")
    monkeypatch.setattr("resode.training.setup.data.load", lambda *_, **__: other)
    train(None, experiment, out=tmp_path / "other")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_module_made_by_create_can_be_loaded_from_its_run(tiny, tmp_path):
    network = resode.create("digits_resnet8", classes=10, widths=[4, 4, 8])
    result = train(network, tiny, out=tmp_path / "run")
    again = resode.load(result.run.model)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_a_module_edited_since_is_the_users_own(tiny, tmp_path):
    network = resode.create("digits_resnet8", classes=7, widths=[4, 4, 8])
    network.fc = nn.Linear(8, 10)
    result = train(network, tiny, out=tmp_path / "run")
    with pytest.raises(InputError, match="no registered model"):
        resode.load(result.run.model)


def test_frozen_modules_stay_frozen(tiny, tmp_path):
    network = resode.create("digits_resnet8", classes=10, widths=[4, 4, 8])
    network.bn1.eval()
    train(network, tiny, out=tmp_path / "run")
    assert torch.equal(network.bn1.running_mean, torch.zeros(4))
    assert not torch.equal(network.layer1[0].bn1.running_mean, torch.zeros(4))


def test_compiled_training_saves_plain_names(tiny, tmp_path, monkeypatch):
    fast = acceleration.Slot("aot_eager")  # in place of the full compiler
    monkeypatch.setattr(acceleration, "backend", fast)
    train(None, tiny.replace(compile=True), out=tmp_path / "run")
    names = load_file(tmp_path / "run" / "model.safetensors").keys()
    assert names == resode.create("digits_resnet8").state_dict().keys()


def test_a_smaller_last_batch_is_not_compiled_for(tiny, tmp_path, monkeypatch):
    sizes = []

    def noting(graph, inputs):
        sizes.extend(x.shape[0] for x in inputs if x.ndim == 4 and x.shape[-1] == 8)
        return graph.forward

    monkeypatch.setattr(acceleration, "backend", acceleration.Slot(noting))
    train(None, tiny.replace(compile=True, batch_size=100), out=tmp_path / "run")
    samples = prepare(tiny).training.samples
    assert samples % 100 != 0
    assert sizes == [100]
    train(None, tiny.replace(batch_size=100), out=tmp_path / "eager")
    state, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "eager"))
    assert all(torch.allclose(state[name], expected[name], atol=1e-6) for name in state)


def test_a_single_last_image_is_refused_where_it_cannot_be_normalised(tiny, tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    with pytest.raises(InputError, match=r"would be a single image .* choose another batch_size"):
        train(module, tiny.replace(batch_size=244), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"average": {"decay": 0.9, "samples": 1}}, "average.samples"),
        ({"average": {"decay": 0.9}, "evaluation": {"batch_size": 1}}, "evaluation.batch_size"),
    ],
)
def test_statistics_of_a_single_image_are_refused_before_training(tiny, tmp_path, settings, key):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    with pytest.raises(InputError, match=f"^{key}: statistics .* of a single image: .*; choose more"):
        train(module, tiny.replace(batch_size=100, **settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_statistics_of_a_single_image_that_has_several_pixels_are_estimated(tiny, tmp_path):
    train(None, tiny.replace(epochs=1, average={"decay": 0.9, "samples": 1}), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Flatten(), "no trainable parameter"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), r"torch.float64.*module.float\(\)"),
        (nn.Sequential(nn.Flatten(), nn.LSTM(64, 10)), "shape tuple"),
    ],
)
def test_a_module_that_cannot_be_trained_is_refused(tiny, tmp_path, module, message):
    with pytest.raises(InputError, match=message):
        train(module, tiny, out=tmp_path / "run")


def test_a_module_that_does_not_fit_is_refused_before_training(tiny, tmp_path):
    with pytest.raises(InputError, match=r"shape \(1, 7\).*10 classes"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), tiny, out=tmp_path / "run")
    with pytest.raises(InputError, match=r"does not take the images of digits \(1x8x8\)"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(65, 10)), tiny, out=tmp_path / "run")
    with pytest.raises(InputError, match="does not fit the data"):
        train(None, Experiment.from_recipe("quickstart", {"model.classes": 3}), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_divergence_names_step_and_layer_and_saves_nothing_of_it(tiny, tmp_path):
    experiment = tiny.replace(optimizer={"name": "sgd", "lr": 1e30}, schedule={"name": "constant"})
    with pytest.raises(DivergenceError) as error:
        train(None, experiment, out=tmp_path / "run")
    assert error.value.exit_code == 4
    assert "diverged at iteration" in str(error.value)
    assert "layer" in str(error.value)
    checkpoint, _ = checkpoints.newest(tmp_path / "run" / "checkpoints")
    assert all(torch.isfinite(t).all() for t in load_file(checkpoint.model).values())
    assert not (tmp_path / "run" / "summary.json").exists()
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert ended == {"status": "diverged", "reason": error.value.messages[0]}


def test_the_layer_that_breaks_is_the_layer_that_is_named(tiny, tmp_path):
    class Breaks(nn.Module):
        """Gives infinity from its fourth training call on."""

        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.calls += 1
            return x + torch.where(self.calls >= 4, torch.inf, 0.0)

    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Breaks(), nn.Linear(16, 10))
    with pytest.raises(DivergenceError, match=r"iteration 3 .*step 4 of .*layer '2' \(Breaks\)"):
        train(module, tiny, out=tmp_path / "run")


class TestDirectory:
    def test_a_run_is_never_overwritten(self, tiny, tmp_path):
        with pytest.raises(Stopped):
            train(None, tiny, out=tmp_path / "run", callback=StopAt(1))
        with pytest.raises(InputError, match="an unfinished run; go on with --resume"):
            train(None, tiny, out=tmp_path / "run")
        train(None, tiny, out=tmp_path / "run", resume=True)
        with pytest.raises(InputError, match="a finished run"):
            train(None, tiny, out=tmp_path / "run")

    def test_other_files_are_not_mixed_with_a_run(self, tiny, tmp_path):
        (tmp_path / "thesis.tex").write_text("")
        with pytest.raises(InputError, match="is not empty and holds no run"):
            train(None, tiny, out=tmp_path)
        with pytest.raises(InputError, match="is a file"):
            train(None, tiny, out=tmp_path / "thesis.tex")

    def test_two_processes_cannot_share_one(self, tiny, tmp_path):
        with Run(tmp_path / "run").lock(), pytest.raises(InputError, match="another process is training"):
            train(None, tiny, out=tmp_path / "run")

    def test_resume_refuses_another_experiment(self, tiny, tmp_path):
        with pytest.raises(Stopped):
            train(None, tiny, out=tmp_path / "run", callback=StopAt(1))
        other = tiny.replace(batch_size=32, optimizer={"name": "sgd", "lr": 0.5})
        with pytest.raises(InputError) as error:
            train(None, other, out=tmp_path / "run", resume=True)
        text = str(error.value)
        assert "batch_size=256, now it is 32" in text
        assert "optimizer.lr=0.1, now it is 0.5" in text

    def test_resume_takes_the_older_checkpoint_when_the_newest_is_damaged(self, tiny, tmp_path):
        train(None, tiny, out=tmp_path / "whole")
        with pytest.raises(Stopped):
            train(None, tiny, out=tmp_path / "run", callback=StopAt(3))
        (checkpoints.stored(tmp_path / "run" / "checkpoints")[-1] / "state.json").write_text("{}")

        listener = Listener()
        train(None, tiny, out=tmp_path / "run", resume=True, callback=listener)
        assert any("state.json" in line and "an older checkpoint is used" in line for line in listener.lines)
        assert_same(tmp_path / "whole", tmp_path / "run")

    def test_resume_refuses_a_checkpoint_with_the_former_spelling(self, tiny, tmp_path):
        with pytest.raises(Stopped):
            train(None, tiny, out=tmp_path / "run", callback=StopAt(1))
        newest, _ = checkpoints.newest(tmp_path / "run" / "checkpoints")
        former = {name.replace("optimizer/", "optimiser/"): t for name, t in newest.training.items()}
        save_file(former, newest.path / "training.safetensors")
        manifest = json.loads((newest.path / "manifest.json").read_text())
        manifest["training.safetensors"] = atomic.sha256(newest.path / "training.safetensors")
        (newest.path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=r"'optimiser/\.\.\.', called 'optimizer' now") as error:
            train(None, tiny, out=tmp_path / "run", resume=True)
        assert len(error.value.messages) == 1

    def test_resume_refuses_settings_with_the_former_spelling(self, tiny, tmp_path):
        weights_of = train(None, tiny, out=tmp_path / "first").run.model
        started = tiny.replace(init={"path": str(weights_of)})
        with pytest.raises(Stopped):
            train(None, started, out=tmp_path / "run", callback=StopAt(1))
        path = tmp_path / "run" / "experiment.yaml"
        path.write_text(path.read_text().replace("  optimizer: false", "  optimiser: false"))
        with pytest.raises(InputError, match=r"'init\.optimiser'; did you mean 'init.optimizer'") as error:
            train(None, started, out=tmp_path / "run", resume=True)
        assert len(error.value.messages) == 1

    def test_resume_refuses_changed_data(self, tiny, tmp_path):
        with pytest.raises(Stopped):
            train(None, tiny, out=tmp_path / "run", callback=StopAt(1))
        path = tmp_path / "run" / "experiment.yaml"
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join("  fingerprint: '00'" if line.startswith("  fingerprint") else line for line in lines)
        )
        with pytest.raises(IntegrityError, match="the data has changed"):
            train(None, tiny, out=tmp_path / "run", resume=True)

    def test_a_full_disk_is_found_before_the_first_step(self, tiny, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
            with pytest.raises(ResourceError, match="checkpoints need"):
                train(None, tiny, out=tmp_path / "run")
        train(None, tiny, out=tmp_path / "run")  # once there is room the same command works

    def test_resume_may_change_the_device_but_not_the_checkpoints(self, tiny, tmp_path):
        with pytest.raises(Stopped):
            train(None, tiny, out=tmp_path / "run", callback=StopAt(1))
        with pytest.raises(ResourceError, match="--device cpu"):
            train(None, tiny.replace(device="cuda:77"), out=tmp_path / "run", resume=True)
        with pytest.raises(InputError, match=r"checkpoint.keep=2, now it is 3"):
            train(None, tiny.replace(checkpoint={"keep": 3}), out=tmp_path / "run", resume=True)

    def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(self, tiny, tmp_path, monkeypatch):
        write, calls = checkpoints._fill, []

        def fill(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise OSError(28, "No space left on device")
            write(*arguments)

        monkeypatch.setattr(checkpoints, "_fill", fill)
        with pytest.raises(ResourceError, match="No space left on device"):
            train(None, tiny, out=tmp_path / "run")
        monkeypatch.undo()
        train(None, tiny, out=tmp_path / "run", resume=True)
        train(None, tiny, out=tmp_path / "whole")
        assert_same(tmp_path / "whole", tmp_path / "run")


def test_resume_keeps_what_auto_chose(tiny, tmp_path, monkeypatch):
    experiment = tiny.replace(precision="auto")
    monkeypatch.setattr(form, "SHORT", 0)
    for measurement in ("step_seconds", "probe_seconds"):  # whatever the processor can
        monkeypatch.setattr(form, measurement, lambda *of: 0.1 if of[2].precision == "bf16" else 1.0)
    with pytest.raises(Stopped):
        train(None, experiment, out=tmp_path / "run", callback=StopAt(1))
    monkeypatch.setattr(form, "step_seconds", lambda *of: 1.0)
    assert train(None, experiment, out=tmp_path / "run", resume=True).summary["precision"] == "bf16"


def test_a_run_keeps_to_the_commit_of_its_hub_data(tiny, tmp_path, monkeypatch):
    asked, digits = [], resode.load_data("digits")

    def load(source, **_):
        asked.append(source)
        return dataclasses.replace(digits, name="hf://owner/digits@" + "1" * 40)

    monkeypatch.setattr("resode.training.setup.data.load", load)
    experiment = tiny.replace(data={"source": "hf://owner/digits"})
    with pytest.raises(Stopped):
        train(None, experiment, out=tmp_path / "run", callback=StopAt(1))
    train(None, experiment, out=tmp_path / "run", resume=True)
    assert asked == ["hf://owner/digits", "hf://owner/digits@" + "1" * 40]


def test_a_lost_metrics_file_is_written_again(tiny, tmp_path):
    train(None, tiny, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(None, tiny, out=tmp_path / "run", callback=StopAt(7))
    (tmp_path / "run" / "metrics.csv").write_text("damaged")
    train(None, tiny, out=tmp_path / "run", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_lost_its_final_weights_makes_them_again(tiny, tmp_path):
    train(None, tiny, out=tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").unlink()
    train(None, tiny, out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_initial_weights_that_are_not_finite_are_refused(tiny, tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        module[1].bias[3] = torch.nan
    with pytest.raises(InputError, match=r"initial weights are not finite: the value of '1\.bias'"):
        train(module, tiny, out=tmp_path / "run")


def test_skipped_images_are_reported(tiny, tmp_path):
    from PIL import Image

    for name in ("zero", "one"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for number in range(3):
            path = tmp_path / "data" / "train" / name / f"{number}.png"
            Image.new("L", (8, 8), 60 * number).save(path)
    path.write_bytes(path.read_bytes()[:50])
    listener = Listener()
    data = {"source": str(tmp_path / "data"), "on_bad_image": "skip"}
    result = train(None, tiny.replace(data=data), out=tmp_path / "run", callback=listener)
    assert any("1 images were skipped" in line for line in listener.lines)
    assert any("no test images" in line for line in listener.lines)
    assert len(result.summary["data"]["skipped"]) == 1
    assert result.test_error is None


def test_weights_to_start_from_bring_their_normalisation(tiny, tmp_path):
    first = train(
        None, tiny.replace(data={"source": "digits", "mean": (0.25,), "std": (0.5,)}), out=tmp_path / "a"
    )
    file = first.run.path / "model.safetensors"
    setup = prepare(tiny.replace(init={"path": str(file)}))
    assert setup.experiment.data.mean == (0.25,)
    assert setup.experiment.data.std == (0.5,)
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, setup.module.state_dict()[name]), name
    with pytest.raises(InputError, match="the recipe trains a digits_resnet14"):
        prepare(tiny.replace(model={"name": "digits_resnet14"}, init={"path": str(file)}))
    own = resode.create("digits_resnet8", classes=10, widths=[4, 4, 8])
    setup = prepare(tiny.replace(init={"path": str(file)}), own)
    assert torch.equal(load_file(file)["conv1.weight"], own.conv1.weight)


def test_weights_of_other_classes_need_a_new_head(tiny, tmp_path):
    seven = resode.create("digits_resnet8", classes=7, widths=[4, 4, 8])
    preprocessing = weights.Preprocessing((0.5,), (0.5,), (8, 8), 1, tuple("abcdefg"))
    specification = weights.Specification("digits_resnet8", {"classes": 7, "widths": [4, 4, 8]})
    file = tmp_path / "seven.safetensors"
    weights.save(seven, file, weights.Card(specification, preprocessing))
    with pytest.raises(InputError, match=r"seven.safetensors: .*init.new_head=true"):
        prepare(tiny.replace(init={"path": str(file)}))
    setup = prepare(tiny.replace(init={"path": str(file), "new_head": True}))
    assert torch.equal(setup.module.conv1.weight, seven.conv1.weight)
    assert setup.module.fc.out_features == 10


def test_an_estimate_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    estimate = training.estimate(tiny)
    assert estimate.seconds > 0
    assert estimate.memory_bytes > 0
    assert list(tmp_path.iterdir()) == []
