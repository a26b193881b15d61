"""The shared library of C++ kernels: compiled on first use for this processor, and cached as a file.

    <cache>/kernels-<user>/<version>-<SHA-256 of the file>.so

A library is loaded only if it lies in a folder of mode 0700 of this user, belongs to this user, and has the
hash of its name; otherwise it is built again. Nobody else can write to that folder between check and load.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resode import atomic

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
OPTIONS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
WITHOUT_AMX = (*OPTIONS, "-mno-amx-tile")  # where the operating system refuses AMX to this process


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None without a C++ compiler with OpenMP ($CXX, default: c++), or if it cannot be built."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return None
    try:
        loaded = _load(compiler, OPTIONS)
        return loaded if loaded.bf16_instructions() >= 0 else _load(compiler, WITHOUT_AMX)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error).encode()
        first = (reason.decode(errors="replace").strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"the C++ kernels cannot be built ({first[:200]}): plain torch is used, which is slower and "
            "rounds differently",
            stacklevel=2,
        )
        return None


def _load(compiler: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """The library compiled with these options, built where the cache has no intact one."""
    name, folder = version(compiler, options), atomic.private_folder("kernels")
    for path in sorted(folder.glob(f"{name}-*.so")):
        if (loaded := _load_intact(path)) is not None:
            return loaded
    path = _build(compiler, options, folder, name)
    loaded = _load_intact(path)
    if loaded is None:
        raise OSError(f"{path}: cannot be loaded")
    return loaded


def _load_intact(path: Path) -> ctypes.CDLL | None:
    """Load a library; None where it is somebody else's, or has not the hash of its name."""
    try:
        with _opened(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != path.stem.rpartition("-")[2]:
                return None
            return ctypes.CDLL(str(path))
    except OSError:
        return None


def _opened(path: Path) -> BufferedReader:
    """Open a file of this user that nobody else may write to; no symbolic link."""
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")
    if not atomic.is_private(file.fileno()):
        file.close()
        raise PermissionError(f"{path}: belongs to another user, or others may write to it")
    return file


_C_TYPES = {"l": ctypes.c_int64, "i": ctypes.c_int, "d": ctypes.c_double, "p": ctypes.c_void_p}


def call_kernel(name: str, types: str, *arguments: Tensor | float | None) -> None:
    """Call a C function.

    Args:
        name: of the function.
        types: a letter for each argument: long, int, double or pointer.
        arguments: pointers are given as tensors; the number of threads is appended.
    """
    values = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
    _function(name, types)(*values, torch.get_num_threads())


@functools.cache
def _function(name: str, types: str) -> Callable[..., None]:
    loaded = library()
    assert loaded is not None, "the kernels are not built"
    function = getattr(loaded, name)
    function.argtypes, function.restype = [*map(_C_TYPES.__getitem__, types), ctypes.c_int], None
    return function  # type: ignore[no-any-return]  # ctypes has no types for it


def register_operator(
    schema: str, function: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Define a torch operator for the CPU.

    Not by `torch.library.custom_op`, whose overhead is as long as a kernel takes for a small image.

    Args:
        schema: name and signature.
        function: the implementation.
        fake: gives results of the right shape, dtype and layout, for the compiler.
    """
    name, _, signature = schema.partition("(")
    torch.library.define(f"resode::{name}", "(" + signature, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"resode::{name}", "CPU")(function)
    torch.library.register_fake(f"resode::{name}")(fake)
    return getattr(torch.ops.resode, name).default  # type: ignore[no-any-return]  # torch has no types for it


def version(compiler: str | None = None, options: tuple[str, ...] = OPTIONS) -> str:
    """32 hexadecimal digits from sources, compiler, options and processor; "none" without a compiler."""
    compiler = compiler or os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return "none"
    content = (
        b"".join(source.read_bytes() for source in (*SOURCES, *HEADERS))
        + repr((shutil.which(compiler), options, _processor())).encode()
    )
    return hashlib.sha256(content).hexdigest()[:32]


def _build(compiler: str, options: tuple[str, ...], folder: Path, name: str) -> Path:
    """Compile in a sibling folder, sync, and rename: several processes may build at once."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        built = Path(beside) / "kernels.so"
        command = [compiler, *options, "-o", str(built), *map(str, SOURCES)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        built.chmod(0o700)
        atomic.sync(built)
        return built.replace(folder / f"{name}-{atomic.sha256(built)}.so")


def _processor() -> str:
    """The processor's features, on which `-march=native` depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
