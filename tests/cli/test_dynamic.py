"""Networks of dynamic blocks on the command line: regrid, list, show, import."""

import json
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file

import resode as library
from resode import interop, weights
from resode.cli import import_
from resode.integrators import integrators
from resode.interop import toolbox as toolbox_format
from resode.models import name_and_options
from resode.models.twisting import twisted_convolutions

GOLDEN = Path(__file__).parent.parent / "golden" / "dynamicblocks-rk4-parabolic-tv.safetensors"
RECIPE = "quickstart-parabolic"
SETTINGS = {
    "epochs": 4,
    "batch_size": 256,
    "model.widths": [4, 6],
    "model.states": [0, 1, 2],
    "precision": "fp32",
}
TINY = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Path:
    """A finished run of one parabolic block on digits."""
    path = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESODE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        library.train(RECIPE, out=path, progress=False, **SETTINGS)
    return path


@pytest.fixture
def run(trained_once, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained_once, tmp_path / "run"))


# ---------------------------------------------------------------- twist


def test_a_run_is_twisted_evaluates_the_same_and_is_trained_on(resode, run, tmp_path):
    before = json.loads(resode("evaluate", run, "--json").out)
    answer = resode("twist", run, "--stages", "1", "--where", "stem.conv", "--out", "t.safetensors")
    assert answer.code == 0, answer.err
    assert "stem.conv  conformal, 16 parameters added" in answer.out
    assert "stage 1  stages.0  conformal, 192 parameters added" in answer.out  # at three control nodes
    assert "with t.optimizer.safetensors" in answer.err
    after = json.loads(resode("evaluate", "t.safetensors", "--json").out)
    assert after["top1_error"] == before["top1_error"]
    assert abs(after["loss"] - before["loss"]) < 1e-5
    state, old = load_file(tmp_path / "t.optimizer.safetensors"), "momentum_buffer/stages.0.controls.0.conv."
    assert state[f"{old}twist"].abs().max() == 0
    assert state[f"{old}weight"].abs().max() > 0
    assert "K = W + X Wx + Y Wy (conformal)" in resode("show", "t.safetensors").out

    init = ("--init", "t.safetensors", "--set", "init.optimizer=true")
    answer = resode("train", RECIPE, "--out", "on", *TINY, *init)
    assert answer.code == 0, answer.err
    assert "the recipe's, twisted" in answer.err
    layers = twisted_convolutions(library.load(tmp_path / "on"))
    assert [item.name for item in layers] == ["stem.conv", *(f"stages.0.controls.{j}.conv" for j in range(3))]
    assert all(item.layer.twist.abs().max() > 0 for item in layers)
    answer = resode("regrid", "on", "--states", "double", "--out", "fine.safetensors")
    assert answer.code == 0, answer.err
    assert len(twisted_convolutions(library.load(tmp_path / "fine.safetensors"))) == 4


def test_a_recipe_may_twist_a_field_and_refine_on_the_way(resode, tmp_path):
    words = ("--set", "model.name=twisted", "--set", "model.of={name: chang, kind: leapfrog, widths: [4, 6]}",
             "--set", "epochs=2", "--set", "batch_size=512", "--set", "refine=[{at: 0.5}]",
             "--set", "precision=fp32")  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {name: twisted, of: he_resnet8}\ndata: {source: digits}\n")
    answer = resode("train", recipe, "--out", "run", *words)
    assert answer.code == 0, answer.err
    assert "finer time grids" in answer.err
    assert {item.stage for item in twisted_convolutions(library.load(tmp_path / "run"))} == {None, 1, 2}


# ---------------------------------------------------------------- regrid


def test_a_run_is_regridded_and_trained_on(resode, run, tmp_path):
    before = json.loads(resode("evaluate", run, "--json").out)
    answer = resode("regrid", run, "--states", "double", "--controls", "double", "--out", "fine.safetensors")
    assert answer.code == 0, answer.err
    assert "[0, 1, 2] -> [0, 0.5, 1, 1.5, 2]" in answer.out
    assert "network  evaluations  8 -> 16" in answer.out
    assert "re-estimated on 1,000 training images of digits" in answer.err
    after = json.loads(resode("evaluate", "fine.safetensors", "--json").out)
    assert abs(after["loss"] - before["loss"]) < 0.35 * before["loss"]
    card = weights.read_card(tmp_path / "fine.safetensors")
    assert card.specification.name == "dynamic"
    assert card.preprocessing == weights.read_card(run / "model.safetensors").preprocessing
    assert "test_error" not in card.training  # it was measured on another network
    assert card.training["regridded"].startswith(f"from {run} (")
    assert "its test error was" in card.training["regridded"]
    state = load_file(tmp_path / "fine.optimizer.safetensors")
    assert {name.partition("/")[0] for name in state} == {"momentum_buffer"}

    init = ("--init", "fine.safetensors", "--set", "init.optimizer=true")
    answer = resode("train", RECIPE, "--out", "on", *TINY, *init)
    assert answer.code == 0, answer.err
    assert "the recipe's on other time grids" in answer.err
    assert library.load(tmp_path / "on").stages[0].stage.states.steps == 4
    answer = resode("train", RECIPE, "--dry-run", *TINY, *init)
    assert answer.code == 0, answer.err
    (tmp_path / "fine.optimizer.safetensors").unlink()
    answer = resode("train", RECIPE, "--out", "other", *TINY, *init)
    assert answer.code == 2
    assert "fine.optimizer.safetensors: no such file" in answer.err


def test_a_bare_file_keeps_nearby_statistics_unless_data_is_given(resode, run, tmp_path):
    file = run / "model.safetensors"
    bare = resode("regrid", file, "--states", "0,0.25,1,2", "--controls", "states", "--out", "a.safetensors")
    assert bare.code == 0, bare.err
    assert "nearest old evaluation" in bare.err
    assert not (tmp_path / "a.optimizer.safetensors").exists()
    given = resode("regrid", file, "--states", "0,0.25,1,2", "--controls", "states", "--data", "digits",
                   "--out", "b.safetensors")  # fmt: skip
    assert given.code == 0, given.err
    one, other = (load_file(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    old = load_file(file)
    assert torch.equal(one["stem.norm.running_mean"], old["stem.norm.running_mean"])
    assert not torch.equal(other["stem.norm.running_mean"], old["stem.norm.running_mean"])
    assert library.load(tmp_path / "b.safetensors").stages[0].stage.states.nodes == (0, 0.25, 1, 2)


def test_a_checkpoint_brings_its_own_state_and_force_replaces(resode, run, tmp_path):
    checkpoint = max((run / "checkpoints").iterdir(), key=lambda p: int(p.name))
    words = ("regrid", checkpoint, "--states", "halve", "--controls", "halve", "--out", "coarse.safetensors")
    assert resode(*words).code == 0
    state = load_file(tmp_path / "coarse.optimizer.safetensors")
    old = load_file(checkpoint / "training.safetensors")
    name = "momentum_buffer/stages.0.controls.{}.conv.weight"
    assert torch.equal(state[name.format(1)], old[f"optimizer/{name.format(2)}"])
    answer = resode(*words)
    assert answer.code == 2
    assert "exists already" in answer.err
    assert resode(*words[:1], run / "model.safetensors", *words[2:], "--force").code == 0
    assert not (tmp_path / "coarse.optimizer.safetensors").exists()  # of other weights


def test_each_stage_may_have_a_grid_of_its_own(resode, tmp_path):
    stage = {"width": 4, "field": "parabolic", "integrator": "euler", "states": 2}
    module = library.create("dynamic", stages=[stage, stage])
    preprocessing = weights.Preprocessing((0.5,) * 3, (0.2,) * 3, (8, 8), 3, tuple("0123456789"))
    card = weights.Card(weights.Specification(*name_and_options(module)), preprocessing)
    weights.save(module, tmp_path / "two.safetensors", card)
    answer = resode("regrid", "two.safetensors", "--states", "double/keep", "--controls", "states",
                    "--out", "mixed.safetensors")  # fmt: skip
    assert answer.code == 0, answer.err
    stages = library.load(tmp_path / "mixed.safetensors").stages
    assert [block.stage.states.steps for block in stages] == [4, 2]
    answer = resode("regrid", "two.safetensors", "--states", "double/keep/keep", "--out", "no.safetensors")
    assert answer.code == 2
    assert "3 time grids are given for 2 stages" in answer.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to change"),
        (("--states", "duoble"), "--states duoble; did you mean 'double'?"),
        (("--states", "states"), "--states states"),
        (("--states", "0,1,x"), "nodes are numbers"),
        (("--states", "0,2,1"), "stage 1: a time grid has to increase"),
        (("--states", "0,1,3"), "from 0 to 2 as before"),
        (("--states", "0,1,2", "--out", "fine.pt"), "must end in .safetensors"),
        (("--states", "double", "--data", "cifra10"), "cifra10"),
    ],
)
def test_what_regrid_cannot_do(resode, run, tmp_path, words, message):
    answer = resode("regrid", run, "--out", "fine.safetensors", *words)
    assert answer.code == 2
    assert message in answer.err
    assert len(answer.lines) == 1
    assert not (tmp_path / "fine.safetensors").exists()


def test_a_network_without_time_grids_is_refused(resode, trained):
    answer = resode("regrid", trained, "--states", "double", "--out", "fine.safetensors")
    assert answer.code == 2
    assert "holds a digits_resnet8, which has no time grids" in answer.err


# ---------------------------------------------------------------- list, show


def test_fields_and_integrators_are_listed_with_equation_and_order(resode):
    text = resode("list", "fields").out
    for part in ("parabolic", "-(K^T relu(N(K y + b1)) + b2)", "TvNorm", "hamiltonian"):
        assert part in text, part
    text = resode("list", "integrators").out
    assert all(name in text for name in integrators.names())
    (rk4,) = [line for line in text.splitlines() if line.split()[:1] == ["rk4"]]
    assert rk4.split()[1] == "4"
    assert "(1/6, 1/3, 1/3, 1/6)" in text
    assert resode("list", "integrators", "rk5").code == 2


def test_a_model_that_needs_its_stages_is_listed_without_costs(resode):
    text = resode("list", "models", "dynamic*").out
    (line,) = [line for line in text.splitlines() if "any network of dynamic blocks" in line]
    assert "3x32x32" not in line
    assert "251,866" in text


def test_show_explains_every_block_of_a_recipe(resode):
    text = resode("show", "dynamicblocks/rk4").out
    for part in (
        "251,866 parameters",
        "stage 3",
        "f = -(K^T relu(N(K y + b1)) + b2)",
        "RK4, order 4",
        "each 64x8x8",
        "evaluations    16",
        "multiply-adds  75.5 M an image",
        "at batch 125, gradient stored",
    ):
        assert part in text, part
    assert "stage 1" not in resode("show", "he2016/resnet20").out


def test_show_tells_warnings_of_the_network_that_will_be_trained(resode):
    text = resode("show", RECIPE, "--set", "model.norm=none", "--set", "model.scheme=euler",
                  "--set", "model.states=[0,9]", "--set", "model.controls=[0]").out  # fmt: skip
    assert "images 1x8x8 to 10 classes" in text
    assert "warning        Euler is linearly stable up to h = " in text


@pytest.mark.parametrize("setting", ["in_channels=1", "classes=7"])
def test_show_refuses_what_does_not_fit_the_data(resode, setting):
    answer = resode("show", "dynamicblocks/rk4", "--set", f"model.{setting}")
    assert answer.code == 2
    assert f"model.{setting} does not fit the data cifar10" in answer.err


def test_show_explains_the_blocks_of_a_weights_file(resode, run):
    text = resode("show", run / "model.safetensors").out
    assert "each 4x8x8" in text
    assert "RK4, order 4" in text


def test_bad_grids_are_refused_before_anything_is_read(resode):
    answer = resode("train", RECIPE, "--set", "model.states=[0,2,1]", "--set", "model.widths=[4,6]")
    assert answer.code == 2
    assert answer.lines == [f"resode: {RECIPE}: a time grid has to increase: 2 is followed by 1 in [0, 2, 1]"]


# ---------------------------------------------------------------- import


@pytest.fixture
def toolbox(tmp_path) -> Path:
    """A state_dict of the DynamicBlocks toolbox, as it saves one."""
    golden = load_file(GOLDEN)
    state = {n.removeprefix("state."): t.float() for n, t in golden.items() if n.startswith("state.")}
    torch.save(state, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_every_format_of_the_library_is_a_choice_of_the_command():
    choices = get_args(get_args(get_type_hints(import_.import_, include_extras=True)["format_"])[0])
    assert choices == (*interop.FORMATS, toolbox_format.MODEL)


GIVEN = ("--set", "scheme=rk4", "--set", "states=[0,1,2]", "--set", "controls=[0,1,2]")
OUT = ("--model", "dynamicblocks", "--out", "net.safetensors")


def test_a_toolbox_network_is_imported_with_what_its_tensors_tell(resode, toolbox, tmp_path):
    answer = resode("import", "dynamicblocks", toolbox, *OUT, *GIVEN)
    assert answer.code == 0, answer.err
    assert "assumed: the toolbox's own for CIFAR, mean 0.5 and std 1" in answer.err
    module = library.load(tmp_path / "net.safetensors")
    golden = load_file(GOLDEN)
    torch.testing.assert_close(
        module(golden["input"].float()), golden["logits"].float(), rtol=1e-3, atol=1e-4
    )
    options = module.card.specification.options
    assert options["widths"] == [3, 4, 5]
    assert options["layer"] == "parabolic"
    assert module.preprocessing.classes[0] == "airplane"
    assert (module.preprocessing.mean, module.preprocessing.std) == ((0.5,) * 3, (1.0,) * 3)
    assert "assumed" in module.card.training["imported"]["normalisation"]
    assert "RK4, order 4" in resode("show", "net.safetensors").out
    own = ("--set", "mean=[0.5,0.5,0.5]", "--set", "std=[0.25,0.25,0.25]", "--force")
    answer = resode("import", "dynamicblocks", toolbox, *OUT, *GIVEN, *own)
    assert answer.code == 0, answer.err
    card = weights.read_card(tmp_path / "net.safetensors")
    assert card.preprocessing.std == (0.25, 0.25, 0.25)
    assert "normalisation" not in card.training["imported"]


def test_a_network_of_rk1_tells_its_scheme_and_the_kind_of_its_double_layers_is_given(resode, tmp_path):
    golden = load_file(GOLDEN.with_name("dynamicblocks-rk1-preact_double-batch.safetensors"))
    state = {n.removeprefix("state."): t.float() for n, t in golden.items() if n.startswith("state.")}
    torch.save(state, tmp_path / "net.pt")
    given = (*GIVEN[2:], "--set", "layer=preact_double")
    answer = resode("import", "dynamicblocks", "net.pt", *OUT, *given)
    assert answer.code == 0, answer.err
    module = library.load(tmp_path / "net.safetensors")
    options = module.card.specification.options
    assert (options["scheme"], options["norm"], options["layer"]) == ("euler", "batch", "preact_double")
    torch.testing.assert_close(
        module(golden["input"].float()), golden["logits"].float(), rtol=1e-3, atol=1e-4
    )
    answer = resode(
        "import", "dynamicblocks", "net.pt", *OUT, *GIVEN[2:], "--set", "layer=parabolic", "--force"
    )
    assert answer.code == 2
    assert "--set layer=parabolic: net.pt has layers of the kind double or preact_double" in answer.err


def test_a_file_with_metadata_tells_its_scheme_and_grids(resode, tmp_path):
    answer = resode("import", "dynamicblocks", GOLDEN, *OUT)
    assert answer.code == 0, answer.err
    golden, module = load_file(GOLDEN), library.load(tmp_path / "net.safetensors")
    assert torch.equal(module(golden["input"]).round(decimals=10), golden["logits"].round(decimals=10))


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ((), ["its scheme: add --set scheme=rk4", "its states: add", "its controls: add"]),
        ((*GIVEN[2:], "--set", "scheme=rk2"), ["scheme=rk2: choose one of rk1, rk4"]),
        ((*GIVEN, "--set", "width=[4]"), ["--set width: dynamicblocks has no such option"]),
        ((*GIVEN[:4], "--set", "controls=[0,2]"), ["has 3 control nodes a block, [0, 2] has 2"]),
        ((*GIVEN[:4], "--set", "controls=[0,2,1]"), ["has to increase"]),
        ((*GIVEN, "--set", "mean=[0.5,0.5,0.5]"), ["give both"]),
        ((*GIVEN, "--set", "mean=[0.5]", "--set", "std=[1]"), ["mean and std need 3 numbers"]),
        ((*GIVEN, "--model", "he_resnet20"), ["give --model dynamicblocks"]),
    ],
)
def test_what_a_toolbox_file_needs(resode, toolbox, tmp_path, words, messages):
    answer = resode("import", "dynamicblocks", toolbox, *OUT, *words)
    assert answer.code == 2
    assert len(answer.lines) == len(messages)
    for line, message in zip(answer.lines, messages, strict=True):
        assert message in line
    assert not (tmp_path / "net.safetensors").exists()


def test_files_that_are_no_toolbox_networks(resode, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("other.pt", "other.safetensors"):
        answer = resode("import", "dynamicblocks", name, *OUT, *GIVEN)
        assert answer.code == 2
        assert "is no network of DynamicBlocks" in answer.err
    answer = resode("import", "akamaster", "other.pt", *OUT[2:], "--model", "he_resnet20", *GIVEN)
    assert answer.code == 2
    assert "akamaster takes no options" in answer.err
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 50)
    assert resode("import", "dynamicblocks", "torn.safetensors", *OUT, *GIVEN).code == 3
