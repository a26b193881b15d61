"""Settings can be found: list, show, explain and completion, quick and complete."""

import json
import os
import re
import subprocess
import sys

import pytest

from resode import catalogue, recipes
from resode.cli import completion
from resode.training import Experiment
from resode.training.recipe.keys import every_path

TORCH_FREE = {
    "help": ["--help"],
    "misspelt": ["tarin"],
    "recipes": ["list", "recipes"],
    "models": ["list", "models"],
    "show": ["show", "quickstart"],
    "explain": ["explain", "optimizer.lr"],
    "study": ["explain", "study"],
}
HEAVY = ("torch", "scipy", "matplotlib", "pyarrow", "huggingface_hub", "PIL")
NARROW = 80


@pytest.mark.parametrize("words", TORCH_FREE.values(), ids=TORCH_FREE)
def test_what_only_reads_names_loads_no_pytorch(words):
    code = (
        "import sys\nfrom resode.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        f"assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_compiler_is_not_imported_with_the_library():
    code = "import sys, resode.models, resode.training.launch; assert 'sympy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- list


def test_a_narrow_terminal_cuts_no_name_and_loses_no_column(resode, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(NARROW))
    for kind, names in (("recipes", recipes.files()), ("models", catalogue.models())):
        lines = resode("list", kind).out.splitlines()
        assert max(map(len, lines)) <= NARROW
        assert set(names) <= {line.split(" ")[0] for line in lines}
    for kind, column in (("integrators", "one step"), ("fields", "f(y)")):
        lines = resode("list", kind).out.splitlines()
        assert max(map(len, lines)) <= NARROW
        assert column in "\n".join(lines[:3])
        assert "…" not in "\n".join(lines)


@pytest.mark.parametrize("columns", [NARROW, 120, 500])
def test_a_recipe_is_one_line(resode, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, _, *lines = resode("list", "recipes").out.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("* measured otherwise"))
    assert [row.split()[0] for row in lines[:start]] == list(recipes.files())
    assert "best epoch" in " ".join(lines[start:])


def test_a_list_through_a_pipe_is_not_cut():
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [sys.executable, "-m", "resode", "list", "recipes", "akamaster"]
    text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert recipes.summary("akamaster/resnet20") in text


# ---------------------------------------------------------------- show


def test_show_prints_yaml_that_trains_the_same(resode, tmp_path):
    (tmp_path / "my.yaml").write_text(resode("show", "quickstart").out)
    assert Experiment.from_recipe("my.yaml") == Experiment.from_recipe("quickstart")
    small = ("--epochs", "1", "--batch-size", "256", "--set", "model.widths=[4,4,8]", "--precision", "fp32")
    weights = []
    for recipe, out in (("quickstart", "one"), ("my.yaml", "two")):
        assert resode("train", recipe, *small, "--out", out).code == 0
        weights.append((tmp_path / out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_show_on_a_terminal_is_a_page(resode, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    text = resode("show", "he2016/resnet20").out
    assert re.search(r"^published +8.75 %", text, re.MULTILINE)
    assert "about:" not in text
    assert "# " not in text


@pytest.mark.parametrize("command", ["train", "show"])
def test_shortcuts_are_those_of_set(resode, command):
    dry = ("--dry-run", "--precision", "fp32", "--compile", "off") if command == "train" else ()
    answer = resode(command, "quickstart", "--epochs", "3", "--lr", "0.05", "--batch-size", "32", *dry)
    assert answer.code == 0, answer.err
    if command == "show":
        for line in ("epochs: 3 ", "  lr: 0.05 ", "batch_size: 32 "):
            assert line in answer.out
    else:
        assert "for 3 epochs" in answer.out
    for option in ("--epochs", "--lr", "--batch-size"):
        wrong = resode(command, "quickstart", option, "many")
        assert wrong.code == 2
        assert "cannot be 'many'" in wrong.err


def test_show_of_a_model_has_its_cost_and_says_what_to_type(resode):
    text = resode("show", "he_resnet20").out
    for part in ("269,722", "40.6 M", "resode train he2016/resnet20", "shortcut='A'"):
        assert part in text
    assert (
        "resode train modern/resnet18 --set model.name=cifar_resnet50" in resode("show", "cifar_resnet50").out
    )
    assert "he_resnet26" in resode("show", "he_resnet26").out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("train", "resnet20"), ("did you mean 'he2016/resnet20'", "resode show he_resnet20")),
        (("show", "resnet50"), ("liuyao2021/resnet50-twist", "resode show cifar_resnet50")),
        (("train", "he_resnet20"), ("is a model", "resode train he2016/resnet20")),
        (("train", "cifar_resnet50"), ("is a model", "--set model.name=cifar_resnet50")),
        (("train", "study.yaml"), ("is a study", "resode study study.yaml")),
        (("study", "training.yaml"), ("not a study", "resode train training.yaml")),
        (("explain", "lr"), ("did you mean 'optimizer.lr'",)),
        (("explain", "model.he_resnt20"), ("did you mean 'he_resnet20'",)),
        (("show", "he_resnet20", "--epochs", "3"), ("only a recipe has settings",)),
    ],
)
def test_a_wrong_word_is_answered_by_what_to_type(resode, tmp_path, words, parts):
    (tmp_path / "study.yaml").write_text("recipe: quickstart\narms: {a: {}, b: {}}\n")
    (tmp_path / "training.yaml").write_text("base: quickstart\nepochs: 3\n")
    answer = resode(*words)
    assert answer.code == 2
    assert len(answer.lines) == 1
    for part in parts:
        assert part in answer.err


def test_show_names_where_a_recipe_departs_from_its_source(resode, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: quickstart\nabout: {differs: [no weight decay, 20 epochs for 100]}\n")
    assert "differs: [no weight decay, 20 epochs for 100]" in resode("show", recipe).out


# ---------------------------------------------------------------- show RUN


def test_show_of_a_finished_run_describes_the_run(resode, run):
    summary = json.loads((run / "summary.json").read_text())
    text = resode("show", run).out
    for part in (
        r"^ *epochs +2",
        rf"^ *test error +{summary['test']['top1_error']:.2f} % +360 images",
        r"^data +digits, 0.15 held out$",
        r"^ *initial weights +random",
        "^epochs: 2$",
    ):
        assert re.search(part, text, re.MULTILINE), part
    assert "expected" not in text


def test_show_of_an_unfinished_run_says_how_to_go_on(resode, run):
    (run / "summary.json").unlink()
    text = resode("show", run).out
    assert f"go on with `resode train --resume --out {run}`" in text
    (run / "ended.json").write_text('{"status": "diverged", "reason": "the loss is not finite"}')
    assert "diverged" in resode("show", run).out


def test_a_published_figure_stands_beside_a_run_of_its_protocol_only(resode, run):
    (run / "summary.json").unlink()

    def shown(**changes):
        experiment = Experiment.from_recipe("he2016/resnet20", changes)
        (run / "experiment.yaml").write_text(experiment.to_yaml())
        return "8.75 %" in resode("show", run).out

    assert shown()
    assert shown(seed=3, precision="bf16")
    assert not shown(epochs=10)
    assert not shown(batch_size=64)
    assert not shown(init={"path": "other.safetensors"})


# ---------------------------------------------------------------- explain


def test_explain_prints_every_key(resode):
    text = resode("explain").out
    for path in every_path(Experiment):
        assert re.search(rf"^{re.escape(path)}\b", text, re.MULTILINE), path


def test_explain_of_a_key_has_type_default_and_sentence(resode):
    text = resode("explain", "optimizer.lr").out
    for part in ("a number above 0", "default: 0.1", "Learning rate at the peak", "(adamw)"):
        assert part in text
    assert "schedule.milestones" in resode("explain", "schedule").out
    assert "slurm.minutes" in resode("explain", "study").out
    for name in (
        "model.he_resnet20",
        "field.parabolic",
        "integrator.imex",
        "gradient.checkpointed",
        "model.widths",
    ):
        answer = resode("explain", name)
        assert answer.code == 0, answer.err
        assert "default" in answer.out


# ---------------------------------------------------------------- completion


def test_completion_offers_recipes_models_and_runs(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert completion.recipe_names("he2016/resnet1") == ["he2016/resnet110", "he2016/resnet1202"]
    assert "run" in completion.recipe_names("")
    assert completion.network_names("r") == ["run", "ruthotto2018/hamiltonian-30-epochs"]
    assert "he_resnet20" in completion.shown_names("he_")
    assert "short/resnet20" in completion.weights_names("short")
    assert "optimizer.lr" in completion.keys("optimizer.l")


def test_the_shell_asks_and_is_answered_without_pytorch(tmp_path):
    words = {
        "COMP_WORDS": "resode train he2016/resnet1",
        "COMP_CWORD": "2",
        "_RESODE_COMPLETE": "complete_bash",
    }
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "from resode.cli import app\napp(prog_name='resode')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | words,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.split() == ["he2016/resnet110", "he2016/resnet1202", "False"], answer.stderr


@pytest.mark.parametrize("command", ["import", "lift", "regrid", "twist", "export"])
def test_force_is_a_flag(resode, command):
    text = resode(command, "--help").out
    assert re.search(r"--force(?! *\[)", text)
    assert "--no-force" not in text
