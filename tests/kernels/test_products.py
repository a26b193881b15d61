"""What is written for matrix units and what is for vectors: both are right, whichever a machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resode.kernels.convolution import products

HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "c++")
SHOW = "from resode.kernels.convolution import products; print(products())"
OTHER = {
    "matrix units": ("vectors", "-mno-amx-tile"),
    "vectors": ("matrix units", f"-include '{HERE / 'matrix_units.h'}'"),  # in software
}


needs_products = pytest.mark.skipif(products() is None, reason="no products of bf16, or no C++ compiler")


@pytest.mark.slow
@needs_products
def test_the_other_form_passes_the_same_tests(tmp_path):
    other, options = OTHER[products()]
    python = with_compiler(tmp_path, f'exec {COMPILER} "$@" {options}')
    shown = python("-c", SHOW)
    assert shown.stdout.strip() == other, shown.stderr
    tests = [str(HERE / f"test_{name}.py") for name in ("convolution", "inference")]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout.splitlines()[-1]
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
@needs_products
def test_where_the_system_refuses_matrix_units_there_are_vectors(tmp_path):
    """Some sandboxes do, on processors that have both: the kernels are built once more, without the units."""
    refused = f"-DPERMISSION=-1L -include '{HERE / 'matrix_units.h'}'"
    script = f"""case "$*" in
    *-mno-amx-tile*) exec {COMPILER} "$@";;
    *) exec {COMPILER} "$@" {refused};;
    esac"""
    python = with_compiler(tmp_path, script)
    shown = python("-c", SHOW)
    assert shown.stdout.strip() == "vectors", shown.stderr
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 2
    done = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "values", str(HERE / "test_convolution.py")
    )
    assert done.returncode == 0, done.stdout[-3000:]


def with_compiler(folder, script):
    """Runs Python with these lines of a shell as its C++ compiler, and a cache of its own."""
    compiler = folder / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    environment = os.environ | {"CXX": str(compiler), "RESODE_CACHE": str(folder / "cache")}

    def run(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    return run
