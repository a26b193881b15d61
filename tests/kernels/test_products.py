"""What is written for matrix units and what is for vectors: both are right, whichever a machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resode.kernels.convolution import products

HERE = Path(__file__).parent
OTHER = {
    "matrix units": ("vectors", "-mno-amx-tile"),
    "vectors": ("matrix units", f"-include '{HERE / 'matrix_units.h'}'"),  # in software
}


@pytest.mark.slow
@pytest.mark.skipif(products() is None, reason="no products of bf16, or no C++ compiler")
def test_the_other_form_passes_the_same_tests(tmp_path):
    other, options = OTHER[products()]
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" {options}\n')
    compiler.chmod(0o755)
    environment = os.environ | {"CXX": str(compiler), "RESODE_CACHE": str(tmp_path / "cache")}

    def run(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    shown = run("-c", "from resode.kernels.convolution import products; print(products())")
    assert shown.stdout.strip() == other, shown.stderr
    tests = [str(HERE / f"test_{name}.py") for name in ("convolution", "inference")]
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout.splitlines()[-1]
    assert "skipped" not in done.stdout.splitlines()[-1]
