"""The environment of a run, as `environment.json` records it: versions, hardware, threads, commit."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import torch

from resode import acceleration
from resode.version import __version__


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Describe this process, as JSON values.

    Args:
        device: the device that is used.
        processes: how many processes train together.
    """
    return {
        "resode": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": _cpu_capability(),
        "kernels": acceleration.version.get()(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "command": _command(),
    }


def _command() -> list[str] | None:
    """The `resode` command line, also of `python -m resode`; None in any other program."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return ["resode", *sys.argv[1:]] if name in ("resode", "resode.exe") else None


def _cpu_capability() -> str:
    """The instruction set that torch's kernels use, and the bf16 instructions of the processor, if any."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    bf16 = ", AMX bf16" if known.get("amx_bf16") else ", AVX512 bf16" if known.get("avx512_bf16") else ""
    return torch.backends.cpu.get_cpu_capability() + bf16


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The git commit of these sources, with `-dirty` if they were changed; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            timeout=5,
            check=False,
        )
        if tracked.returncode != 0:  # installed: the repository around it is not ours
            return None
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        answer = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
