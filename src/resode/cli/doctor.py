"""`resode doctor`: what resode finds on this machine."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from resode.errors import ResodeError


def doctor() -> None:
    """Show versions, hardware, where data is found, and what `auto` would choose here.

    Examples:

        resode doctor

    \f
    """
    from resode.cli.console import out

    for label, text in [*_software(), *_hardware(), *_places()]:
        out.print(f"{label:<12} {text}", highlight=False, markup=False, soft_wrap=True)


def _software() -> Iterator[tuple[str, str]]:
    import platform

    import torch

    from resode import __version__

    yield "resode", __version__
    yield "python", platform.python_version()
    yield "torch", str(torch.__version__)


def _hardware() -> Iterator[tuple[str, str]]:
    import torch

    from resode.cli.console import format_bytes
    from resode.training.precision import choose_device, choose_precision
    from resode.training.runs import environment

    device = choose_device("auto")
    facts = environment(device)
    yield "cpu", f"{facts['cpu']}, {facts['cores']} cores, {facts['cpu_capability']}"
    yield "threads", str(torch.get_num_threads())
    yield "memory", format_bytes(facts["memory_bytes"])
    yield "device", f"{device}" + (f" ({facts['gpu']})" if facts["gpu"] else "")
    precision, reason = choose_precision("auto", device)
    yield "precision", f"{precision}: {reason}"


def _places() -> Iterator[tuple[str, str]]:
    from resode.cli.console import format_bytes
    from resode.data import sources

    free = format_bytes(shutil.disk_usage(Path.cwd()).free)
    yield "disk", f"{free} free here, {'writable' if os.access(Path.cwd(), os.W_OK) else 'NOT writable'}"
    root = os.environ.get("RESODE_DATA")
    if root is None:
        yield "data", "RESODE_DATA is not set: named data sets are downloaded from the hub"
    elif not Path(root).is_dir():
        yield "data", f"RESODE_DATA={root}: NO such folder"
    else:
        found = [name for name in sources.names() if (Path(root) / name).is_dir()]
        yield "data", f"RESODE_DATA={root}: {', '.join(found) or 'none of the named data sets'}"
    try:
        from resode.data import load

        yield "digits", f"{len(load('digits').train.labels):,} training images ship with the package"
    except ResodeError as error:
        yield "digits", error.messages[0]
