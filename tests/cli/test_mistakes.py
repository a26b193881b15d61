"""Bad input gets one or two lines that name the thing and the fix, and the right exit code."""

import pickle
import re

import pytest
import safetensors.torch
import torch
from torch import nn

import resode as library
from resode.cli import main
from resode.errors import InputError, Stopped
from tests.cli.conftest import TINY


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trian", "quickstart"), "No such command 'trian'"),
        (("train",), "which recipe?"),
        (("train", "--resume", "--out", "runs/none"), "holds no run to resume"),
        (("train", "quickstrat"), "did you mean 'quickstart'"),
        (("train", "quickstart", "--data", "digts"), "did you mean 'digits'"),
        (("train", "quickstart", "--data", "./no/such/folder"), "no/such/folder"),
        (("train", "quickstart", "--set", "epochs=zero"), "'epochs'"),
        (("train", "quickstart", "--set", "optimiser.lr=1"), "did you mean 'optimizer'"),
        (("train", "quickstart", "--precision", "fp8"), "'precision' cannot be 'fp8'"),
        (
            ("train", "quickstart", "--compile", "maybe"),
            "'--compile': 'maybe' is not one of 'auto', 'on', 'off' (see",
        ),
        (("train", "quickstart", "--device", "gpu"), "unknown device 'gpu'"),
        (("train", "quickstart", "--track", "wandb"), "'wandb' is not one of 'tensorboard'"),
        (("study", "widths.yaml", "--executor", "lsf"), "'lsf' is not one of 'slurm', 'local'"),
        (("train", "quickstart", "--memory-budget", "lots"), "'memory_budget'"),
        (("train", "quickstart", "--memory-budget", "0"), "'memory_budget'"),
        (("train", "quickstart", "--memory-budget", "1MB"), "no gradient method meets it"),
        (("train", "quickstart", "--set", "model.gradient=reversible"), "take stored or checkpointed"),
        (
            ("train", "quickstart", "--set", "model.gradient={name: checkpointed, every: 0}"),
            "positive integer",
        ),
        (
            ("train", "gomez2017/revnet38", "--set", "model.gradient={name: reversible, anchor: 0}"),
            "an anchor every 0 steps",
        ),
        (("train", "quickstart", "--init", "none.safetensors"), "none.safetensors"),
        (("train", "quickstart", "--seed", "one"), "--seed"),
        (("train", "quickstart", "--plugin", "none.py"), "none.py: no such file"),
        (("evaluate", "runs/none"), "runs/none: no such run"),
        (("evaluate", "."), "holds no run"),
        (("report", "runs/none"), "runs/none"),
        (("predict", "runs/none", "x.png"), "no such"),
        (("show", "he2016/resnet21"), "did you mean"),
        (("list", "model"), "'model' is not one of 'models', 'recipes'"),
        (("evaluate", "run", "--split", "tset"), "'tset' is not one of 'test', 'train'"),
        (("predict", "run", "x.png", "--precision", "fp8"), "'fp8' is not one of 'fp32', 'bf16'"),
        (("compare", "run", "--as", "html"), "'html' is not one of 'table', 'markdown', 'csv'"),
        (("evaluate", "weights.pth"), "resode import"),
        (
            ("import", "akamaster", "a.safetensors", "--model", "he_resnet20", "--out", "b.safetensors"),
            "is a saf",
        ),
        (
            ("import", "akamster", "x", "--model", "he_resnet20", "--out", "y.safetensors"),
            "is not one of 'akamaster'",
        ),
        (("import", "akamaster", "x.th", "--model", "he_resnet20", "--out", "y.safetensors"), "x.th"),
        (("import", "akamaster", "x.th", "--model", "he_resnet20", "--out", "y.pt"), "end in .safetensors"),
    ],
)
def test_usage_and_input_exit_2(resode, words, message, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"PK" + bytes(100))
    answer = resode(*words)
    assert answer.code == 2, answer.err
    assert message in answer.err
    assert len(answer.lines) <= 2
    assert "Traceback" not in answer.err
    assert answer.out == ""


def test_many_mistakes_are_a_line_each(resode):
    answer = resode("train", "quickstart", "--set", "epoch=1", "--set", "sed=1", "--set", "optimizer.lrr=1")
    assert answer.code == 2
    assert len(answer.lines) == 3


def test_a_run_is_not_overwritten(resode, trained):
    answer = resode("train", "quickstart", "--out", "run", *TINY)
    assert answer.code == 2
    assert "holds a finished run" in answer.err


def test_a_misspelt_test_folder_is_named(resode, tmp_path):
    for name in ("train/a", "train/b", "tset/a"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "x.png").write_bytes(b"")
    answer = resode("train", "quickstart", "--data", "data")
    assert answer.code == 2
    assert "tset is not a test folder; did you mean 'test'?" in answer.err


def test_weights_that_are_not_finite_give_no_result(resode, trained):
    import torch

    from resode import weights

    module = weights.load(trained / "model.safetensors")
    with torch.no_grad():
        module.conv1.weight[0] = torch.nan
    weights.save(module, trained / "nan.safetensors", module.card)
    for words in (("evaluate", trained / "nan.safetensors", "--json"), ("train", "quickstart", "--init",
                  trained / "nan.safetensors", "--out", "other", *TINY)):  # fmt: skip
        answer = resode(*words)
        assert answer.code in (2, 3)
        assert "not finite" in answer.err
        assert answer.out == ""


def test_a_damaged_file_exits_3(resode, trained):
    file = trained / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    for words in (("evaluate", trained), ("evaluate", file), ("predict", file, file)):
        answer = resode(*words)
        assert answer.code == 3, answer.err
        assert len(answer.lines) == 1


class Hostile:
    """Would create a file if a loader ran it."""

    def __reduce__(self):
        return open, ("executed", "w")


def test_a_hostile_checkpoint_executes_nothing_and_exits_3(resode, tmp_path):
    (tmp_path / "evil.th").write_bytes(pickle.dumps({"state_dict": Hostile()}))
    answer = resode("import", "akamaster", "evil.th", "--model", "he_resnet20", "--out", "x.safetensors")
    assert answer.code == 3, answer.err
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "x.safetensors").exists()


def test_divergence_exits_4(resode):
    words = ("--set", "optimizer.lr=1e30", "--set", "schedule.name=constant")
    answer = resode("train", "quickstart", "--out", "run", *TINY, *words)
    assert answer.code == 4
    assert "diverged at iteration" in answer.err
    assert "Lower optimizer.lr" in answer.err


def test_a_missing_gpu_exits_5(resode):
    answer = resode("train", "quickstart", "--device", "cuda:77")
    assert answer.code == 5
    assert "--device cpu" in answer.err


def test_a_place_that_cannot_be_written_exits_5(resode):
    answer = resode("train", "quickstart", "--out", "/proc/resode-run", *TINY)
    assert answer.code == 5
    assert "cannot be written" in answer.err


def test_debug_shows_the_traceback(resode):
    assert "Traceback" in resode("train", "quickstrat", "--debug").err


def test_another_process_says_which_it_is_and_leaves_a_stop_to_the_first(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    for error, code, said in (
        (InputError("no such recipe"), 2, "resode: rank 3: no such recipe\n"),
        (Stopped(15, "stopped and saved"), 143, ""),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("resode.cli.app", fail)
        with pytest.raises(SystemExit) as exit_:
            main(["list"])
        assert exit_.value.code == code
        assert capsys.readouterr().err == said


def test_no_command_advises_a_call_in_python(resode, tmp_path):
    """A network that was made in Python cannot be rebuilt by a command, which says so in its own words."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    library.train(network, data="digits", epochs=1, out=tmp_path / "own", progress=False)
    (tmp_path / "other.safetensors").write_bytes(safetensors.torch.save({"weight": torch.ones(2)}))
    for words in (
        ("evaluate", "own"), ("predict", "own", "."), ("export", "own", "--out", "own.onnx"),
        ("analyze", "own"), ("twist", "own", "--out", "t.safetensors"), ("train", "--resume", "--out", "own"),
        ("regrid", "own", "--states", "double", "--out", "r.safetensors"), ("evaluate", "other.safetensors"),
        ("show", "own/model.safetensors"), ("train", "quickstart", "--init", "own", "--out", "i"),
    ):  # fmt: skip
        answer = resode(*words)
        assert "internal error" not in answer.err
        assert not re.search(r"\w\.\w+\(|\w+=\w+[,)]|import ", answer.out + answer.err), answer.err
