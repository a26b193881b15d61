"""The root package: every public name is there, and none costs anything before it is used."""

import ast
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import resode
from resode import DynamicBlock, DynamicNet, Stage, TimeGrid
from resode.errors import InputError
from resode.fields import Parabolic, TvNorm
from resode.gradients import Checkpointed
from resode.integrators import RK4, ExplicitRungeKutta, solve
from resode.models.regridding import regridding
from resode.models.transitions import Connector, Head, Stem
from resode.training import Run, Scores

STAGE = Stage(8, "parabolic", "rk4", states=2)
NOUNS = {
    *("analysis", "data", "fields", "gradients", "integrators", "interop", "models", "operators"),
    *("plugins", "training"),
}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_package_imports_no_torch():
    assert python("import resode, sys; dir(resode); print('torch' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("name", resode._PUBLIC)
def test_every_public_name_resolves_and_is_listed(name):
    assert name in dir(resode)
    value = getattr(resode, name)
    assert isinstance(value, types.ModuleType) == (name in NOUNS)
    assert vars(resode)[name] is value  # found without __getattr__ from now on
    assert value.__doc__


@pytest.mark.parametrize("name", sorted(set(resode._PUBLIC) - NOUNS))
def test_no_module_shadows_a_public_name(name):
    """Importing `resode.train` would replace the function `resode.train`."""
    assert importlib.util.find_spec(f"resode.{name}") is None


def test_the_lists_of_public_names_agree():
    """The table, `__all__` and the imports for type checkers have the same names."""
    tree = ast.parse(Path(resode.__file__).read_text())
    typed = {}
    for block in tree.body:
        if isinstance(block, ast.If):
            for line in block.body:
                for name in line.names:
                    noun = line.module == "resode"
                    place = f"resode.{name.name}" if noun else f"{line.module}:{name.name}"
                    typed[name.asname or name.name] = place
    assert typed == resode._PUBLIC
    assert sorted({*resode._PUBLIC, "__version__"}) == sorted(resode.__all__)


def test_nouns_are_attributes_without_an_import():
    code = "import resode; print(resode.fields.Parabolic.__name__, resode.integrators.RK4().order)"
    assert python(code).split() == ["Parabolic", "4"]


def test_help_shows_the_public_names():
    text = python("import resode, pydoc; print(pydoc.plain(pydoc.render_doc(resode)))")
    assert "class DynamicNet(" in text
    assert "regrid(net:" in text


def test_a_mistyped_name_names_the_nearest():
    with pytest.raises(AttributeError, match="'DynamicNetwork'; did you mean 'DynamicNet'"):
        resode.DynamicNetwork  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        resode.zzz  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'field'"):
        from resode import field  # noqa: F401


def test_what_a_notebook_shows_fits_in_a_few_lines():
    """A network shows its explanation; data, experiments and re-griddings a line."""
    net = DynamicNet([Stage(4, "parabolic", "rk4", states=2)], classes=3)
    assert repr(net) == str(net) == net.explain()
    assert repr(net.stages[0].stage) == (
        "Stage(width=4, field=Parabolic(norm=TvNorm()), integrator=RK4(), states=TimeGrid([0, 1, 2]))"
    )
    data = resode.load_data("digits")
    assert repr(data).startswith("Dataset(digits: train=Images(1,437 of 8x8, 1 channel), test=Images(360 of")
    experiment = resode.Experiment.from_recipe("quickstart")
    assert repr(experiment) == str(experiment)
    assert "digits_resnet8 on digits, epochs 20" in repr(experiment)
    scores = Scores(0.5, 4, torch.tensor([[2, 1], [0, 1]]), "fp32")
    assert repr(scores) == "Scores(top-1 error 25.00 %, loss 0.5, 4 images, fp32)"
    for value in (data, experiment, scores, regridding(net, states="double"), Run(Path("runs/a"))):
        assert len(repr(value)) < 200
        assert "\n" not in repr(value)


def test_the_repr_of_a_time_grid_makes_an_equal_one():
    for grid in (TimeGrid.uniform(8, end=0.3), TimeGrid((0, 0.1 + 0.2, 1)), TimeGrid.uniform(9, 1.0, -1.0)):
        assert eval(repr(grid), {"TimeGrid": TimeGrid}) == grid
    assert repr(TimeGrid(tuple(k**2 for k in range(30)))) == "TimeGrid([0, 1, 4, 9, ..., 784, 841], 29 steps)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DynamicNet(STAGE), "stages Stage.*: a list of Stage is needed"),
        (lambda: DynamicNet("rk4"), "stages 'rk4': a list of Stage is needed"),
        (
            lambda: DynamicNet([STAGE], stem=Stem),
            r"stem Stem: a class where .* write Stem\(\)",
        ),
        (lambda: DynamicNet([STAGE], stem="3"), "stem '3': expected a Stem"),
        (lambda: DynamicNet([STAGE], head=Head), r"write Head\(\)"),
        (lambda: DynamicNet([STAGE] * 2, connector=Connector), r"write Connector\(\)"),
        (lambda: Stage(8, "parabolic", RK4, 2), r"integrator RK4: .* write RK4\(\)"),
        (lambda: Stage(8, "parabolic", ExplicitRungeKutta, 2), r"ExplicitRungeKutta\(a=..., b=..., c=...\)"),
        (lambda: Stage(8, "parabolic", "rk4", 2, gradient=Checkpointed), r"write Checkpointed\(\)"),
        (lambda: Parabolic(norm=TvNorm), r"norm TvNorm: .* write TvNorm\(\)"),
        (lambda: Parabolic(activation=torch.relu), "activation .*: a name is needed"),
        (lambda: DynamicBlock(8), "stage 8: expected a Stage"),
        (lambda: solve(RK4, TimeGrid.of(2), lambda t, y: y, torch.ones(1)), r"write RK4\(\)"),
        (lambda: solve(RK4(), 2, lambda t, y: y, torch.ones(1)), "grid 2: expected a TimeGrid"),
        (lambda: resode.create(None), "model None: a name is needed"),
        (lambda: resode.twist("he_resnet20"), "twist 'he_resnet20': a network is needed"),
    ],
)
def test_wrong_calls_are_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert len(error.value.messages) == 1
