"""The compiled kernels: built by the machine's C++ compiler on first use, kept for this processor."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resode import atomic

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
OPTIONS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
WITHOUT_UNITS = (*OPTIONS, "-mno-amx-tile")  # where the system refuses the matrix units to this process


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None without a C++ compiler with OpenMP ($CXX, else c++) or a folder to write."""
    compiler = os.environ.get("CXX", "c++")
    try:
        found = _made(compiler, OPTIONS)
        return found if found.makes_products() >= 0 else _made(compiler, WITHOUT_UNITS)
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def _made(compiler: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """The kernels by these options, built where they are not there yet."""
    path = atomic.cache_folder("kernels") / f"{version(compiler, options)}.so"
    if not path.is_file():
        _build(compiler, options, path)
    return ctypes.CDLL(str(path))


_KINDS = {"l": ctypes.c_int64, "i": ctypes.c_int, "d": ctypes.c_double, "p": ctypes.c_void_p}


def call(name: str, kinds: str, *arguments: Tensor | float | None) -> None:
    """Call a kernel with arguments of these kinds (long, int, double, pointer) and the number of threads."""
    given = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
    _declared(name, kinds)(*given, torch.get_num_threads())


@functools.cache
def _declared(name: str, kinds: str) -> Callable[..., None]:
    found = library()
    assert found is not None, "the kernels are not built"
    function = getattr(found, name)
    function.argtypes, function.restype = [*map(_KINDS.__getitem__, kinds), ctypes.c_int], None
    return function  # type: ignore[no-any-return]  # of a library whose names mypy does not know


def operator(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """An operator of torch for the CPU: what it does, and what its results look like.

    Plainly defined: `torch.library.custom_op` takes as long for a call as ours does for a small image.
    """
    name, _, signature = schema.partition("(")
    torch.library.define(f"resode::{name}", "(" + signature, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"resode::{name}", "CPU")(function)
    torch.library.register_fake(f"resode::{name}")(fake)
    return getattr(torch.ops.resode, name).default  # type: ignore[no-any-return]  # the same


def version(compiler: str | None = None, options: tuple[str, ...] = OPTIONS) -> str:
    """What the kernels are made of, in 32 digits: sources, compiler, options and processor."""
    compiler = compiler or os.environ.get("CXX", "c++")
    content = (
        b"".join(source.read_bytes() for source in (*SOURCES, *HEADERS))
        + repr((shutil.which(compiler), options, _processor())).encode()
    )
    return hashlib.sha256(content).hexdigest()[:32]


def _build(compiler: str, options: tuple[str, ...], path: Path) -> None:
    """Compile beside `path`, then rename: several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "made.so"
        command = [compiler, *options, "-o", str(made), *map(str, SOURCES)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        made.rename(path)


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
