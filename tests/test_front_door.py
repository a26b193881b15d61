"""The root package: every public name is there, and none costs anything before it is used."""

import ast
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

import resode

NOUNS = {"analysis", "data", "fields", "gradients", "integrators", "interop", "models", "operators"}


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
    """The table, `__all__`, and what a type checker is told."""
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
