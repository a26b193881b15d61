"""Studies: many runs from one file, each resumable, compared honestly."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resode.study.execution import Progress, execute
    from resode.study.plan import Job, Study, read

_PUBLIC = {"Job": "plan", "Progress": "execution", "Study": "plan", "execute": "execution", "read": "plan"}

__all__ = ["Job", "Progress", "Study", "execute", "read"]


def __getattr__(name: str) -> Any:
    """Import on first use: a job of a cluster loads no PyTorch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'resode.study' has no attribute '{name}'")
    return getattr(importlib.import_module(f"resode.study.{_PUBLIC[name]}"), name)
