"""Training from Python: any form of data, own losses and callbacks, and mistakes in one line."""

import csv
import os
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import resode
from resode import report
from resode.errors import InputError, IntegrityError, Stopped
from resode.training import Callback, Experiment, Run
from resode.training.records import reader
from tests.conftest import DIGITS_IN_A_FLASH

DIGITS = resode.load_data("digits")
TRAIN, TEST = DIGITS.train, DIGITS.test
ARRAYS = (TRAIN.pixels, TRAIN.labels, TEST.pixels, TEST.labels)


def net(classes=10, inputs=64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def norm_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*given, **options):
    return resode.train(*given, progress=False, **{"epochs": 2, **options})


# ---------------------------------------------------------------- network, recipe and data


def test_a_bare_network_learns_from_arrays():
    module = net()
    result = resode.train(module, data=ARRAYS, epochs=5, progress=False)
    assert result.test_error < 20
    assert result.module is module
    assert not module.training
    assert result.epochs == len(result.metrics) == 5
    experiment = result.run.read_experiment()
    assert experiment.data.source == "arrays given in Python"
    assert experiment.data.fingerprint is not None
    assert result.summary["data"]["validation"] == 144


def test_any_form_of_the_same_data_gives_the_same_network():
    tensors = [torch.from_numpy(np.array(a)) for a in ARRAYS]
    tensors[0], tensors[2] = (tensors[i].permute(0, 3, 1, 2) for i in (0, 2))
    forms = (ARRAYS, DIGITS, "digits", (TensorDataset(*tensors[:2]), TensorDataset(*tensors[2:])))
    results = [train(net(), data=form) for form in forms]
    for other in results[1:]:
        assert torch.equal(other.module[1].weight, results[0].module[1].weight)
        assert other.test_error == results[0].test_error
    assert [each.run.read_experiment().data.source for each in results[1:3]] == ["digits", "digits"]


def test_loaded_data_of_another_size_can_be_read_again():
    result = train(net(inputs=16), data=resode.load_data("digits", image_size=4))
    section = result.run.read_experiment().data
    assert (section.source, section.image_size) == ("digits", 4)


def test_a_folder_is_data(tmp_path):
    from PIL import Image

    for name in ("zero", "one"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(np.array(TRAIN.pixels[number, :, :, 0])).save(
                tmp_path / "train" / name / f"{number}.png"
            )
    assert train(net(classes=2), data=tmp_path).summary["data"]["train"] == 24


def test_a_recipe_is_a_name_a_file_a_mapping_an_experiment_or_a_run(tmp_path):
    settings = {"model": {"widths": [4, 4, 8]}, "precision": "fp32", "batch_size": 256}
    first = train("quickstart", **settings)
    (tmp_path / "mine.yaml").write_text(first.run.read_experiment().to_yaml())
    experiment = Experiment.from_recipe("quickstart", DIGITS_IN_A_FLASH)
    for recipe in (tmp_path / "mine.yaml", first.path, experiment, experiment.model_dump()):
        again = train(recipe)
        assert again.test_error == first.test_error


def test_a_recipe_trains_a_network_of_ones_own_on_data_of_ones_own():
    result = train(net(), "quickstart", data=ARRAYS, optimizer="adamw", lr=0.01, seed=3)
    experiment = result.run.read_experiment()
    assert (experiment.model, experiment.optimizer.name, experiment.optimizer.lr) == (None, "adamw", 0.01)
    assert (experiment.seed, experiment.data.source) == (3, "arrays given in Python")
    assert str(result.path) == "runs/quickstart-seed3"


def test_the_images_of_a_recipe_do_not_normalise_others():
    known = Experiment.from_recipe("quickstart", {"data.mean": [0.1], "data.std": [9.0]})
    section = train(net(), known, data=ARRAYS).run.read_experiment().data
    assert section.mean != (0.1,)
    assert section.std != (9.0,)


def test_each_call_has_a_directory_of_its_own():
    paths = [str(train(net(), data=ARRAYS, epochs=1).path) for _ in range(3)]
    assert paths == ["runs/Sequential-seed0", "runs/Sequential-seed0-2", "runs/Sequential-seed0-3"]
    with pytest.raises(InputError, match="holds a finished run"):
        train(net(), data=ARRAYS, out=paths[0])


def test_results_and_runs_are_short_to_print():
    result = train(net(), data=ARRAYS, out="run")
    assert len(repr(result).splitlines()) == 2
    assert repr(result.run) == "Run('run'): finished"
    assert repr(Run(result.path / "nothing")).endswith("no run yet")
    (result.path / "summary.json").write_text("{")
    assert repr(result.run).endswith("damaged")


def test_few_images_have_small_batches_and_no_validation():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 8, 8), dtype=np.uint8), np.arange(30) % 10
    result = train(net(), data=(images, labels))
    assert result.run.read_experiment().batch_size == 8
    assert result.validation_error is result.test_error is None
    assert "training accuracy" in repr(result)


# ---------------------------------------------------------------- what a run leaves


def test_a_run_of_a_network_of_ones_own_is_loaded_into_one():
    result = train(net(), data=ARRAYS)
    again = resode.load(result.path, into=net())
    assert torch.equal(again[1].weight, result.module[1].weight)
    assert again.preprocessing == result.module.preprocessing
    assert not again.training
    with pytest.raises(InputError, match=r"no registered model.*\(into\)"):
        resode.load(result.path)
    with pytest.raises(InputError, match=r"10x64, not 7x64"):
        resode.load(result.path, into=net(7))
    with pytest.raises(InputError, match="give a network"):
        resode.load(result.path, into=nn.Linear)


def test_a_network_keeps_an_attribute_of_the_same_name():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.preprocessing, self.inner = nn.Identity(), net()

        def forward(self, x):
            return self.inner(self.preprocessing(x))

    assert isinstance(train(Own(), data=ARRAYS).module.preprocessing, nn.Identity)


def test_a_run_says_what_it_needs_besides_its_directory():
    result = train(net(), data=ARRAYS)
    with pytest.raises(InputError, match=r"arrays given in Python, which it does not store.*--data NAME"):
        resode.evaluate(resode.load(result.path, into=net()))
    page = report.write(result.path).read_text()
    assert "into=net" in page
    assert "resode train" not in page


def test_floats_train_and_their_unit_is_remembered():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 8, 8))
    images = 5 * (centres[TRAIN.labels] + rng.normal(size=(len(TRAIN), 8, 8)))
    result = train(net(), data=(images, TRAIN.labels))
    assert result.validation_error < 20
    module = result.module
    assert resode.evaluate(module, (images, TRAIN.labels)).top1_error < 20
    assert resode.predict(module, images[:9].astype(np.float32)).classes[0] == str(TRAIN.labels[0])
    with pytest.raises(InputError, match="8-bit pixels, the network was trained on floats from -"):
        resode.predict(module, TRAIN.pixels[:2])


# ---------------------------------------------------------------- stop and resume


class Interrupt(Callback):
    """Presses Ctrl-C in one step."""

    def __init__(self, step):
        self.left = step

    def stepped(self, epoch, step, loss):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_call_says_how_to_resume_and_the_same_call_does():
    whole = train(net(), data=ARRAYS)
    with pytest.raises(Stopped) as stopped:
        train(net(), data=ARRAYS, out="run", callbacks=[Interrupt(15)])
    assert "resode.train(net, 'run', data=..., out='run', resume=True)" in str(stopped.value)
    assert stopped.value._render_traceback_() == [f"Stopped: {stopped.value}"]
    resumed = train(net(), data=ARRAYS, out="run", resume=True)
    assert torch.equal(resumed.module[1].weight, whole.module[1].weight)


def test_the_call_that_the_message_names_resumes_with_the_settings_of_the_run():
    whole = train(net(), data=ARRAYS, lr=0.02, seed=4)
    with pytest.raises(Stopped):
        train(net(), data=ARRAYS, lr=0.02, seed=4, out="run", callbacks=[Interrupt(15)])
    resumed = resode.train(net(), "run", data=ARRAYS, out="run", resume=True, progress=False)
    assert torch.equal(resumed.module[1].weight, whole.module[1].weight)


def test_other_arrays_do_not_resume_a_run():
    with pytest.raises(Stopped):
        train(net(), data=ARRAYS, out="run", callbacks=[Interrupt(3)])
    other = (TRAIN.pixels, TRAIN.labels[::-1].copy(), *ARRAYS[2:])
    with pytest.raises(IntegrityError, match="data has changed since this run began"):
        train(net(), data=other, out="run", resume=True)


def test_a_worker_thread_trains_to_the_same_bits():
    expected, results = train(net(), data=ARRAYS), []
    module = net()
    thread = threading.Thread(target=lambda: results.append(train(module, data=ARRAYS)))
    thread.start()
    thread.join()
    assert torch.equal(results[0].module[1].weight, expected.module[1].weight)


# ---------------------------------------------------------------- callbacks


class Watching(Callback):
    """Notes what is called, adds a metric, and ends the training after some epochs."""

    def __init__(self, epochs=99):
        self.calls, self.epochs = [], epochs

    def started(self, setup, epoch):
        self.calls.append(f"started {epoch}")
        self.setup = setup

    def metrics(self, module, epoch):
        assert module is self.setup.module
        return {"weight norm": module[1].weight.norm()}

    def epoch_ended(self, row):
        self.calls.append(f"epoch {row['epoch']}")
        return "enough" if row["epoch"] == self.epochs else None

    def finished(self, summary):
        self.calls.append(summary["status"])


def test_callbacks_read_and_add_metrics():
    watching = Watching()
    result = train(net(), data=ARRAYS, callbacks=[watching])
    assert watching.calls == ["started 0", "epoch 1", "epoch 2", "finished"]
    with (result.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["weight norm"]) == pytest.approx(result.module[1].weight.norm().item())
    assert "weight norm" in report.write(result.path).read_text()


def test_a_callback_ends_the_training_with_a_result_that_says_so_and_can_be_resumed():
    whole = train(net(), data=ARRAYS, epochs=4)
    result = train(net(), data=ARRAYS, epochs=4, out="run", callbacks=[Watching(2)])
    assert (result.stopped, result.epochs, len(result.metrics)) == ("enough", 2, 2)
    assert "2 epochs of 4, stopped: enough" in repr(result)
    assert result.test_error == pytest.approx(resode.evaluate(result, DIGITS).top1_error)
    run = Run(result.path)
    assert not run.finished
    assert run.read_summary()["stopped"] == {"epoch": 2, "reason": "enough"}
    assert "stopped: enough" in report.write(result.path).read_text()
    resumed = train(net(), data=ARRAYS, epochs=4, out="run", resume=True)
    assert resumed.stopped == ""
    assert run.finished
    assert torch.equal(resumed.module[1].weight, whole.module[1].weight)
    assert reader.read(result.path).epochs[0].further["weight norm"] > 0


def test_a_reason_at_the_last_epoch_changes_nothing():
    result = train(net(), data=ARRAYS, callbacks=[Watching(2)])
    assert result.stopped == ""
    assert result.run.finished


# ---------------------------------------------------------------- losses


def margin(logits, labels):
    return F.multi_margin_loss(logits, labels)


def test_a_loss_of_ones_own_is_minimised_recorded_and_asked_for():
    result = train(net(), data=ARRAYS, loss=margin, out="run")
    assert result.run.read_experiment().loss == "margin given in Python"
    assert result.summary["validation"]["loss"] < 0.5  # cross-entropy is above 1
    found = resode.evaluate(result, DIGITS)
    assert "trained by margin given in Python" in repr(found)
    assert found.loss > result.summary["validation"]["loss"]
    with pytest.raises(Stopped) as stopped:
        train(net(), data=ARRAYS, loss=margin, out="parts", callbacks=[Interrupt(15)])
    assert "loss=..." in str(stopped.value)
    with pytest.raises(InputError, match="does not store; go on in Python"):
        resode.train(net(), "parts", data=ARRAYS, out="parts", resume=True, progress=False)
    resumed = train(net(), data=ARRAYS, loss=margin, out="parts", resume=True)
    assert torch.equal(resumed.module[1].weight, result.module[1].weight)


def test_cross_entropy_as_a_function_is_cross_entropy():
    named, given = (train(net(), data=ARRAYS, loss=loss) for loss in ("cross_entropy", F.cross_entropy))
    assert torch.equal(named.module[1].weight, given.module[1].weight)
    assert [row["train_loss"] for row in named.metrics] == [row["train_loss"] for row in given.metrics]
    assert named.metrics[-1]["validation_loss"] == pytest.approx(given.metrics[-1]["validation_loss"])


# ---------------------------------------------------------------- mistakes


class Named(Callback):
    def __init__(self, metrics):
        self.found = metrics

    def metrics(self, module, epoch):
        return self.found


class Returning(Callback):
    def __init__(self, reason):
        self.reason = reason

    def epoch_ended(self, row):
        return self.reason


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, first, second):
        return self.layer(first.flatten(1))


MISTAKES = {
    "a class": ((nn.Linear,), {}, r"Linear is a class; give a network of it: Linear\(...\)"),
    "nothing": ((None,), {"data": ARRAYS}, "cannot take a value of type NoneType; give a network"),
    "a number": ((3,), {}, "cannot take a value of type int"),
    "no data": ((net(),), {}, "data cannot be None"),
    "data by position": ((net(), ARRAYS), {}, "recipe cannot be of type tuple.*data is a keyword"),
    "two recipes": (("quickstart", "quickstart"), {}, "one recipe"),
    "an unknown recipe": (("quickstrat",), {}, "did you mean 'quickstart'"),
    "an empty mapping": (({},), {"epochs": 1, "device": "gpu"}, "device 'gpu'"),
    "too few classes": ((net(7),), {"data": ARRAYS}, r"shape \(1, 7\).*10 classes"),
    "another size": ((net(inputs=65),), {"data": ARRAYS}, "does not take the images"),
    "one class": ((net(),), {"data": (TRAIN.pixels[:5], [0] * 5)}, "single class"),
    "a single image": (
        (norm_net(),),
        {"data": (TRAIN.pixels[:65], TRAIN.labels[:65]), "batch_size": 64, "data.validation": 0},
        "would be a single image",
    ),
    "no epoch": (
        (net(),),
        {"data": ARRAYS, "epochs": 0},
        "'epochs' cannot be 0: give a whole number above 0",
    ),
    "half an epoch": ((net(),), {"data": ARRAYS, "epochs": 0.5}, "'epochs'"),
    "a negative lr": ((net(),), {"data": ARRAYS, "lr": -1}, "'optimizer.lr'"),
    "learning_rate": ((net(),), {"data": ARRAYS, "learning_rate": 1}, "did you mean 'lr'"),
    "num_epochs": ((net(),), {"data": ARRAYS, "num_epochs": 1}, "did you mean 'epochs'"),
    "a key of a section": ((net(),), {"data": ARRAYS, "weight_decay": 1}, "it belongs to optimizer"),
    "a key in a section": ((net(),), {"data": ARRAYS, "augment": {"flp": 1}}, "did you mean 'augment.flip'"),
    "adam": ((net(),), {"data": ARRAYS, "optimizer": "adam"}, "did you mean 'adamw'"),
    "an optimizer": (
        (net(),),
        {"data": ARRAYS, "optimizer": object()},
        "optimizer: cannot be of type object",
    ),
    "an unknown loss": (
        (net(),),
        {"data": ARRAYS, "loss": "nll"},
        "unknown loss 'nll'; give 'cross_entropy'",
    ),
    "a class of losses": ((net(),), {"data": ARRAYS, "loss": nn.NLLLoss}, r"give a loss of it: NLLLoss\(\)"),
    "no loss": ((net(),), {"data": ARRAYS, "loss": 3}, "loss cannot be 3"),
    "a loss for each image": (
        (net(),),
        {"data": ARRAYS, "loss": nn.CrossEntropyLoss(reduction="none")},
        r"a tensor of shape \(2,\); give a scalar",
    ),
    "a loss without gradient": (
        (net(),),
        {"data": ARRAYS, "loss": lambda logits, labels: (logits.argmax(1) != labels).float().mean()},
        "no gradient",
    ),
    "a loss for other classes": (
        (net(),),
        {"data": ARRAYS, "loss": nn.CrossEntropyLoss(torch.ones(3))},
        r"loss: fails on logits \(2, 10\)",
    ),
    "a loss and smoothing": (
        (net(),),
        {"data": ARRAYS, "loss": margin, "label_smoothing": 0.1},
        "label_smoothing: belongs to cross-entropy",
    ),
    "a single callback": ((net(),), {"data": ARRAYS, "callbacks": Callback()}, "give a tuple"),
    "a class of callbacks": ((net(),), {"data": ARRAYS, "callbacks": [Callback]}, "the class Callback"),
    "a function": ((net(),), {"data": ARRAYS, "callbacks": [print]}, "give an instance of a subclass"),
    "a taken metric": ((net(),), {"data": ARRAYS, "callbacks": [Named({"seconds": 1})]}, "another name"),
    "a metric of words": ((net(),), {"data": ARRAYS, "callbacks": [Named({"a": "b"})]}, "is no number: 'b'"),
    "metrics without names": ((net(),), {"data": ARRAYS, "callbacks": [Named(3)]}, "a mapping of names"),
    "no callbacks": ((net(),), {"data": ARRAYS, "callbacks": None}, "callbacks cannot be None"),
    "a reason that is none": ((net(),), {"data": ARRAYS, "callbacks": [Returning({})]}, "value of type dict"),
    "a lazy network": (
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),),
        {"data": ARRAYS},
        r"parameter 1\.weight has no shape yet; call it once",
    ),
    "a network without values": ((net().to("meta"),), {"data": ARRAYS}, r"parameter 1\.weight has no values"),
    "a network of two inputs": ((Two(),), {"data": ARRAYS}, "does not take the images"),
    "a device that is none": ((net(),), {"data": ARRAYS, "device": torch.device("meta")}, "'meta'"),
    "no directory": ((net(),), {"data": ARRAYS, "out": 5}, "out cannot be 5"),
    "nothing to resume": ((net(),), {"data": ARRAYS, "resume": True}, "continues the run in out"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistake):
    given, options, message = MISTAKES[mistake]
    if mistake == "an empty mapping":
        options = {**options, "model": {"name": "digits_resnet8"}, "data": "digits"}
    with pytest.raises(InputError, match=message) as error:
        train(*given, **options)
    assert len(error.value.messages) == 1
