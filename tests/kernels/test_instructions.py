"""Code for AMX tiles and code for AVX-512 BF16 vectors both pass the tests, whichever a machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resode.kernels.convolution import bf16_instructions

HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "c++")
SHOW = "from resode.kernels.convolution import bf16_instructions; print(bf16_instructions())"
OTHER = {
    "AMX": ("AVX-512 BF16", "-mno-amx-tile"),
    "AVX-512 BF16": ("AMX", f"-include '{HERE / 'amx.h'}'"),  # in software
}


needs_bf16 = pytest.mark.skipif(
    bf16_instructions() is None, reason="no bf16 instructions, or no C++ compiler"
)


@pytest.mark.slow
@needs_bf16
def test_the_code_for_the_other_instructions_passes_the_same_tests(tmp_path):
    other, options = OTHER[bf16_instructions()]
    python = with_compiler(tmp_path, f'exec {COMPILER} "$@" {options}')
    shown = python("-c", SHOW)
    assert shown.stdout.strip() == other, shown.stderr
    tests = [str(HERE / f"test_{name}.py") for name in ("convolution", "inference")]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout.splitlines()[-1]
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
@needs_bf16
def test_vectors_are_used_where_the_system_refuses_amx(tmp_path):
    """Some sandboxes do, on processors that have both: the kernels are built again, without AMX."""
    refused = f"-DPERMISSION=-1L -include '{HERE / 'amx.h'}'"
    script = f"""case "$*" in
    *-mno-amx-tile*) exec {COMPILER} "$@";;
    *) exec {COMPILER} "$@" {refused};;
    esac"""
    python = with_compiler(tmp_path, script)
    shown = python("-c", SHOW)
    assert shown.stdout.strip() == "AVX-512 BF16", shown.stderr
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 2
    done = python(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "exact or values",
        str(HERE / "test_convolution.py"),
    )
    assert done.returncode == 0, done.stdout[-3000:]


def with_compiler(folder, script):
    """A function that runs Python with a shell script as its C++ compiler, and a cache of its own."""
    compiler = folder / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    environment = os.environ | {"CXX": str(compiler), "RESODE_CACHE": str(folder / "cache")}

    def run(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)

    return run
