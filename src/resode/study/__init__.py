"""Studies: many resumable runs defined by one file, and their comparison."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resode.study.definition import Job, Study, read
    from resode.study.execution import Progress, execute

_PUBLIC = {
    "Job": "definition",
    "Progress": "execution",
    "Study": "definition",
    "execute": "execution",
    "read": "definition",
}

__all__ = ["Job", "Progress", "Study", "execute", "read"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that a cluster job does not import PyTorch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'resode.study' has no attribute '{name}'")
    return getattr(importlib.import_module(f"resode.study.{_PUBLIC[name]}"), name)
