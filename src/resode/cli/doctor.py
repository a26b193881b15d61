"""`resode doctor`: versions, hardware and data of this machine."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from resode.errors import ResodeError


def doctor() -> None:
    """Show versions, hardware, where data is found, and what `auto` chooses here.

    Examples:

        resode doctor

    \f
    """
    from resode.cli.console import say

    for label, text in [*_software(), *_hardware(), *_places()]:
        say(f"{label:<12} {text}")


def _software() -> Iterator[tuple[str, str]]:
    import platform

    import torch

    from resode.version import __version__

    yield "resode", __version__
    yield "python", platform.python_version()
    yield "torch", str(torch.__version__)


def _hardware() -> Iterator[tuple[str, str]]:
    import torch

    from resode.models import create
    from resode.quantities import size
    from resode.training.process.device import choose_device, place
    from resode.training.records.environment import environment
    from resode.training.setup.form import choose

    device = choose_device("auto")
    facts = environment(device)
    yield "cpu", f"{facts['cpu']}, {facts['cores']} cores, {facts['cpu_capability']}"
    yield "threads", str(torch.get_num_threads())
    yield "memory", size(facts["memory_bytes"])
    yield "device", f"{device}" + (f" ({facts['gpu']})" if facts["gpu"] else "")
    network = place(create("he_resnet20"), device)
    form = choose(
        network, (3, 32, 32), precision="auto", compile_=False, batch=16, images=10**7, device=device
    )
    yield "precision", f"{form} for ResNet-20: {form.reason}"


def _places() -> Iterator[tuple[str, str]]:
    from resode.data.pinned import PINNED_DATASETS
    from resode.quantities import size

    free = size(shutil.disk_usage(Path.cwd()).free)
    yield "disk", f"{free} free here, {'writable' if os.access(Path.cwd(), os.W_OK) else 'NOT writable'}"
    root = os.environ.get("RESODE_DATA")
    if not root:
        yield "data", "RESODE_DATA is not set: named data sets are downloaded from the hub"
    elif not Path(root).is_dir():
        yield "data", f"RESODE_DATA={root}: NO such folder"
    else:
        folders = {known.name: (known.name, known.folder or known.name) for known in PINNED_DATASETS}
        found = [n for n, places in folders.items() if any((Path(root) / p).is_dir() for p in places)]
        yield "data", f"RESODE_DATA={root}: {', '.join(found) or 'none of the named data sets'}"
    try:
        from resode.data import load

        yield "digits", f"{len(load('digits').train.labels):,} training images come with the package"
    except ResodeError as error:
        yield "digits", error.messages[0]
