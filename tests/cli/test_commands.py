"""Every command does what its help says."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import resode as library
from resode.cli import app
from resode.data import sources
from resode.models import models
from tests.cli.conftest import TINY

COMMANDS = (
    "list",
    "show",
    "explain",
    "train",
    "evaluate",
    "predict",
    "import",
    "lift",
    "regrid",
    "twist",
    "export",
    "analyze",
    "bench",
    "compare",
    "study",
    "report",
    "doctor",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(resode, command):
    answer = resode(command, "--help")
    assert answer.code == 0
    assert f"resode {command}" in answer.out
    assert "Examples" in answer.out


def test_every_command_is_in_the_list_of_help_tests():
    assert {command.name for command in app.registered_commands} == set(COMMANDS)


def test_version_and_bare_call(resode):
    assert resode("--version").out.strip() == library.__version__
    assert "Usage" in resode().out


def test_help_does_not_load_pytorch():
    code = "import sys, resode.cli; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_leaves_a_run_and_says_so(resode, trained):
    assert (trained / "report.html").is_file()
    again = resode("train", "quickstart", "--out", "run", "--resume", *TINY)  # finished: it is shown
    assert again.code == 0
    assert "test error" in again.out.lower()


def test_progress_is_a_line_an_epoch_on_stderr(resode):
    answer = resode("train", "quickstart", "--out", "run", *TINY)
    rows = [line for line in answer.lines if line.strip()[:1].isdigit()]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert "epoch" not in answer.out.splitlines()[0]


def test_evaluate_prints_one_json_object(resode, trained):
    answer = resode("evaluate", trained, "--json")
    record = json.loads(answer.out)
    summary = json.loads((trained / "summary.json").read_text())
    assert record["top1_error"] == summary["test"]["top1_error"]
    assert {"top1_error", "top1_accuracy", "loss", "samples", "precision", "data", "model"} <= record.keys()
    assert record["precision"] == "fp32"
    assert record["data"] == "digits"
    assert record["model"] == "digits_resnet8"


@pytest.mark.parametrize("kind", ["run", "checkpoint", "file"])
def test_evaluate_takes_runs_checkpoints_and_files(resode, trained, kind):
    checkpoint = max((trained / "checkpoints").iterdir(), key=lambda p: int(p.name))
    path = {"run": trained, "checkpoint": checkpoint, "file": trained / "model.safetensors"}[kind]
    records = [json.loads(resode("evaluate", p, "--json").out) for p in (trained, path)]
    assert records[0]["top1_error"] == records[1]["top1_error"]


def test_evaluate_in_bf16_says_so(resode, trained):
    record = json.loads(resode("evaluate", trained, "--precision", "bf16", "--json").out)
    assert record["precision"] == "bf16"


def digit_file(tmp_path, index, name="digit.png"):
    test = library.load_data("digits").test
    Image.fromarray(np.asarray(test.pixels[index])[:, :, 0]).save(tmp_path / name)
    return tmp_path / name


def test_predict_agrees_with_the_network(resode, trained, tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    files = [digit_file(folder, index, f"{index:02d}.png") for index in range(12)]
    rows = json.loads(resode("predict", trained, folder, "--json").out)
    assert [row["file"] for row in rows] == [str(file) for file in files]
    module = library.load(trained / "model.safetensors")
    import torch

    pixels = torch.from_numpy(library.load_data("digits").test.pixels[:12].copy()).permute(0, 3, 1, 2)
    probabilities = module(module.preprocessing(pixels)).softmax(1)
    assert [row["class"] for row in rows] == [str(int(i)) for i in probabilities.argmax(1)]
    assert [row["probability"] for row in rows] == pytest.approx(probabilities.amax(1).tolist(), abs=2e-6)


def test_predict_says_what_it_skips_in_a_folder(resode, trained, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "good.png")
    (folder / "a.txt").write_text("no image")
    (folder / "b.txt").write_text("no image")
    answer = resode("predict", trained, folder)
    assert answer.code == 0, answer.err
    assert answer.out.count("\n") == 1
    assert answer.lines == [f"skipped 2 files that are no images, the first: {folder / 'a.txt'}"]


def test_predict_names_a_bad_file_and_classifies_the_others(resode, trained, tmp_path):
    good = digit_file(tmp_path, 0)
    (tmp_path / "notes.txt").write_text("no image")
    answer = resode("predict", trained, "missing.png", good, tmp_path / "notes.txt")
    assert answer.code == 2
    assert "digit.png" in answer.out
    assert len(answer.lines) == 2
    assert "missing.png" in answer.lines[0]
    assert "notes.txt" in answer.lines[1]


def folder_of_digits(tmp_path, names):
    """The first digits of each class in `train/<name>/`, the others in `test/<name>/`."""
    train = library.load_data("digits").train
    for number, name in enumerate(names):
        for split, indices in (("train", slice(0, 3)), ("test", slice(3, 20))):
            folder = tmp_path / "folder" / split / name
            folder.mkdir(parents=True)
            for index in np.flatnonzero(train.labels == number)[indices]:
                Image.fromarray(train.pixels[index][:, :, 0]).save(folder / f"{index}.png")
    return tmp_path / "folder"


def test_classes_are_matched_by_name(resode, tmp_path):
    """A network of classes in one order, evaluated on folders that sort in another."""
    folder = folder_of_digits(tmp_path, list("jihgfedcba"))
    answer = resode("train", "quickstart", "--data", folder, "--out", "run", *TINY, "--set", "epochs=30")
    assert answer.code == 0, answer.err
    error = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["top1_error"]
    assert json.loads(resode("evaluate", "run", "--json").out)["top1_error"] == error
    assert json.loads(resode("evaluate", "run", "--json").out)["classes"] == "by-name"
    numbered = resode("evaluate", "run", "--data", "digits")
    assert numbered.code == 2
    assert "--classes by-position if class i of the data is logit i, or --classes FILE" in numbered.err
    (tmp_path / "names.yaml").write_text("".join(f"{i}: {name}\n" for i, name in enumerate("jihgfedcba")))
    (tmp_path / "back.json").write_text(json.dumps(dict(zip("0123456789", "abcdefghij", strict=True))))
    errors = {}
    for how in ("by-position", "names.yaml", "back.json"):
        answer = resode("evaluate", "run", "--data", "digits", "--classes", how, "--json")
        assert answer.code == 0, answer.err
        errors[how] = json.loads(answer.out)
    assert errors["by-position"]["classes"] == "by-position"
    assert errors["names.yaml"]["classes"]["3"] == "g"
    assert errors["names.yaml"]["top1_error"] + 10 < errors["by-position"]["top1_error"]
    assert errors["back.json"]["top1_error"] == errors["by-position"]["top1_error"]
    for name in "abcdefghij":
        for split in ("train", "test"):
            (folder / split / name).rename(folder / split / f"digit {name}")
    answer = resode("evaluate", "run")
    assert answer.code == 2
    assert (
        "its classes (digit a, digit b, digit c, digit d, digit e, ...) are not the network's" in answer.err
    )


def test_a_registered_name_is_not_shadowed_by_a_folder(resode, trained, tmp_path):
    (tmp_path / "digits").mkdir()
    assert resode("evaluate", trained, "--data", "digits").code == 0


def test_a_pipe_may_close_early(trained):
    command = f"{sys.executable} -m resode list models | head -1; exit ${{PIPESTATUS[0]}}"
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)


def test_list_shows_parameters_and_multiply_adds(resode):
    text = resode("list", "models", "he_resnet20").out
    assert "269,722" in text
    assert "he_resnet20" in text
    assert "he2016/resnet110" in resode("list", "recipes").out
    assert "6.43 %" in resode("list", "recipes", "*110").out
    assert "digits" in resode("list", "data").out
    missing = resode("list", "models", "vgg")
    assert missing.code == 2


def test_show_prints_the_resolved_recipe(resode):
    text = resode("show", "he2016/resnet20", "--set", "seed=10").out
    for part in ("arXiv 1512.03385", "top1_error: 8.75", "269,722", "40.6 M", "seed: 10", "y_{k+1}", "MB"):
        assert part in text, part
    shorter = resode("show", "he2016/resnet20", "--epochs", "10").out
    assert "he2016/resnet20 with other epochs" in shorter
    assert "top1_error" not in shorter


def test_show_predicts_the_memory_of_every_method(resode):
    answer = resode("show", "gomez2017/revnet38", "--set", "batch_size=8")
    rows = {line.split("  ")[0]: line for line in (line.strip("# ") for line in answer.out.splitlines())}
    for method in ("as the recipe says", "stored", "checkpointed", "reversible", "checkpointed, two levels"):
        assert "in all" in rows[method]
    assert "0.00" not in rows["stored"]
    assert "1.00 forward passes recomputed" in rows["reversible"]
    answer = resode("show", "quickstart", "--set", "memory_budget=3.5MB")
    assert "chosen: checkpointed" in answer.out


def test_a_memory_budget_is_printed_and_written(resode, tmp_path):
    answer = resode("train", "quickstart", *TINY, "--out", "small", "--memory-budget", "2.5MB")
    assert answer.code == 0, answer.err
    assert "memory budget 2.5 MB: checkpointed" in answer.err
    assert "memory_budget: 2500000" in (tmp_path / "small" / "experiment.yaml").read_text()
    again = resode("train", "quickstart", *TINY, "--out", "small", "--memory-budget", "4MB", "--resume")
    assert again.code == 2
    assert "memory_budget" in again.err


def test_a_weights_file_has_a_report(resode, trained):
    answer = resode("report", trained / "model.safetensors")
    assert answer.code == 0
    error = json.loads((trained / "summary.json").read_text())["test"]["top1_error"]
    assert f"{error:.2f} %" in answer.out
    page = (trained / "model.html").read_text()
    for part in (
        f"{error:.2f}",
        "digits_resnet8",
        "weights file",
        "Card of the weights file",
        "resode evaluate",
    ):
        assert part in page, part


def test_show_reads_runs_and_weights(resode, trained):
    assert "fingerprint:" in resode("show", trained).out
    text = resode("show", trained / "model.safetensors").out
    for part in ("digits_resnet8", "widths=[4, 4, 8]", "1x8x8", "parameters", "quickstart", "test error"):
        assert part in text, part
    assert resode("show", "none.safetensors").code == 2


def test_show_reads_the_weights_that_come_with_the_package(resode):
    text = resode("show", "short/resnet20-conformal").out
    for part in ("conformal", "3x32x32", "test error", "MIT"):
        assert part in text, part
    answer = resode("show", "short/resnet20-conformal", "--set", "epochs=3")
    assert answer.code == 2
    assert "holds trained weights" in answer.err
    assert "resode evaluate short/resnet20" in resode("show", "short/resnet20").out  # a recipe, and weights
    assert "come with the package" not in resode("show", "he2016/resnet56").out


def test_a_dry_run_estimates_and_writes_nothing(resode, tmp_path):
    answer = resode("train", "quickstart", "--dry-run", *TINY)
    assert answer.code == 0
    assert "whole run" in answer.out
    assert "memory" in answer.out
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_its_way(resode):
    text = resode("doctor").out
    for part in ("torch", "threads", "precision", "digits"):
        assert part in text


def test_a_plugin_brings_a_model(resode, tmp_path, monkeypatch):
    before = dict(models._entries)
    monkeypatch.setattr(models, "_entries", dict(models._entries))
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "from resode.models import models\n\n\n"
        "@models.register('linear_digits', summary='one layer', shape=(1, 8, 8))\n"
        "def linear_digits(classes=10, in_channels=1):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, classes))\n"
    )
    plugin = ("--plugin", "mine.py")
    set_ = ("--set", "model={name: linear_digits}", "--set", "epochs=2")
    answer = resode("train", "quickstart", "--out", "run", "--precision", "fp32", *set_, *plugin)
    assert answer.code == 0, answer.err
    record = json.loads(resode("evaluate", "run", "--json").out)
    assert record["model"] == "linear_digits"
    monkeypatch.setattr(models, "_entries", before)  # as in a process without the plug-in
    for words in (("train", "--resume", "--out", "run"), ("evaluate", "run")):
        answer = resode(*words)
        assert answer.code == 2
        assert "--plugin" in answer.err


SIGNALLING = """
import os, signal
from resode.data import load, sources

@sources.register("signalling")
def signalling():
    os.kill(os.getpid(), signal.{name})
    return load("digits")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_reading_ends_the_command_and_leaves_no_run(resode, tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "_entries", dict(sources._entries))
    (tmp_path / "plugin.py").write_text(SIGNALLING.format(name=name))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    answer = resode("train", "quickstart", "--data", "signalling", "--plugin", "plugin.py", "--out", "run")
    assert answer.code == 128 + getattr(signal, name)
    assert answer.lines[-1] == "resode: interrupted"
    assert not (tmp_path / "run").exists()
    assert before == {number: signal.getsignal(number) for number in before}


DURING_IMPORT = """
import os, signal, sys
from resode.__main__ import main

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "resode.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
main()
"""


def test_ctrl_c_while_the_command_line_is_imported(tmp_path):
    done = subprocess.run([sys.executable, "-c", DURING_IMPORT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "resode: interrupted\n")


def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    """A real process, a real signal: exit 130, then the run ends as if nothing had happened."""
    command = [sys.executable, "-m", "resode", "train", "quickstart", "--out", "run", "--precision", "fp32"]
    command += ["--set", "model.widths=[4,4,8]"]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.strip().startswith("1 "):
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "go on with: resode train --resume --out run" in said
    resumed = subprocess.run(
        [sys.executable, "-m", "resode", "train", "--resume", "--out", "run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at iteration" in resumed.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["resumes"] == 1


def test_a_dry_run_states_what_a_step_larger_than_the_data_takes(resode):
    shown = resode("train", "quickstart", "--dry-run", "--batch-size", "5000", *TINY)
    assert "batch_size 5,000 exceeds the 1,221 training images: a step takes all" in shown.err
    milliseconds, images = (
        float(found.replace(",", ""))
        for found in re.search(r"one step +(\d+) ms, ([\d,]+) images/s", shown.out).groups()
    )
    assert images == pytest.approx(1221 / milliseconds * 1e3, rel=0.02)


def test_every_command_says_that_a_run_diverged(resode, tmp_path):
    words = ("--set", "optimizer.lr=1e30", "--set", "schedule.name=constant")
    assert resode("train", "quickstart", "--out", "run", *TINY, *words).code == 4
    note = "run: weights of a run that diverged, the last finite ones: iteration 0"
    image = digit_file(tmp_path, 0)
    evaluated = resode("evaluate", "run", "--json")
    predicted = resode("predict", "run", image, "--json")
    exported = resode("export", "run", "--out", "net.safetensors")
    analysed = resode("analyze", "run", "--json")
    for answer in (evaluated, predicted, exported, analysed):
        assert answer.code == 0, answer.err
        assert any(line.startswith(note) for line in answer.lines), answer.err
    card = library.load(tmp_path / "net.safetensors").card.training
    for record in (json.loads(evaluated.out), json.loads(predicted.out)[0], json.loads(analysed.out), card):
        assert (record["state"], record["iteration"]) == ("diverged", 0)
    again = resode("evaluate", "net.safetensors")
    assert "net.safetensors: weights of a run that diverged" in again.err
    for command in ("evaluate", "analyze"):
        assert note in resode(command, "run").err
