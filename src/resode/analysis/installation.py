"""What resode finds on this machine: versions, hardware, data, and what `auto` chooses here."""

import os
import platform
import shutil
from pathlib import Path

import torch

from resode.data import load
from resode.data.pinned import PINNED_DATASETS
from resode.errors import ResodeError
from resode.models import create
from resode.quantities import size
from resode.training.process.device import choose_device, place
from resode.training.records.environment import environment
from resode.training.setup.form import choose
from resode.version import __version__


def describe() -> dict[str, str]:
    """What a report of a problem needs, a line for each label."""
    return {**_software(), **_hardware(), "disk": _disk(), "data": _local_data(), "digits": _digits()}


def _software() -> dict[str, str]:
    return {
        "resode": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _hardware() -> dict[str, str]:
    device = choose_device("auto")
    facts = environment(device)
    network = place(create("he_resnet20"), device)
    form = choose(
        network, (3, 32, 32), precision="auto", compile_=False, batch=16, images=10**7, device=device
    )
    return {
        "cpu": f"{facts['cpu']}, {facts['cores']} cores, {facts['cpu_capability']}",
        "threads": str(torch.get_num_threads()),
        "memory": size(facts["memory_bytes"]),
        "device": f"{device}" + (f" ({facts['gpu']})" if facts["gpu"] else ""),
        "precision": f"{form} for ResNet-20: {form.reason}",
    }


def _disk() -> str:
    free = size(shutil.disk_usage(Path.cwd()).free)
    return f"{free} free here, {'writable' if os.access(Path.cwd(), os.W_OK) else 'NOT writable'}"


def _local_data() -> str:
    """The named data sets in `$RESODE_DATA`."""
    root = os.environ.get("RESODE_DATA")
    if not root:
        return "RESODE_DATA is not set: named data sets are downloaded from the hub"
    if not Path(root).is_dir():
        return f"RESODE_DATA={root}: NO such folder"
    found = [
        known.name
        for known in PINNED_DATASETS
        if any((Path(root) / name).is_dir() for name in (known.name, known.folder) if name)
    ]
    return f"RESODE_DATA={root}: {', '.join(found) or 'none of the named data sets'}"


def _digits() -> str:
    """Whether the package's own images can be read."""
    try:
        return f"{len(load('digits').train.labels):,} training images come with the package"
    except ResodeError as error:
        return error.messages[0]
