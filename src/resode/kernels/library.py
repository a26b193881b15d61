"""The compiled kernels: built by the machine's C++ compiler on first use, kept for this processor."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from resode import durable

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
OPTIONS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC", "-std=c++17")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None without a C++ compiler with OpenMP ($CXX, else c++) or a folder to write."""
    compiler = os.environ.get("CXX", "c++")
    try:
        path = durable.cache_folder("kernels") / f"{version(compiler)}.so"
        if not path.is_file():
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def version(compiler: str | None = None) -> str:
    """What the kernels are made of, in 32 digits: sources, compiler, options and processor."""
    compiler = compiler or os.environ.get("CXX", "c++")
    content = (
        b"".join(source.read_bytes() for source in (*SOURCES, *HEADERS))
        + repr((shutil.which(compiler), OPTIONS, _processor())).encode()
    )
    return hashlib.sha256(content).hexdigest()[:32]


def _build(compiler: str, path: Path) -> None:
    """Compile beside `path`, then rename: several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "made.so"
        command = [compiler, *OPTIONS, "-o", str(made), *map(str, SOURCES)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        made.rename(path)


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
