"""Training: experiments as data, one readable loop, runs that survive anything."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resode.training.estimation import Estimate, estimate
    from resode.training.launch import Result, default_directory
    from resode.training.loop.callbacks import Callback
    from resode.training.loop.evaluation import Scores
    from resode.training.narrator import Narrator
    from resode.training.recipe.experiment import Experiment
    from resode.training.records.locations import load
    from resode.training.records.run import Run
    from resode.training.request import train

_PUBLIC = {
    "Callback": "loop.callbacks",
    "Estimate": "estimation",
    "Experiment": "recipe.experiment",
    "Narrator": "narrator",
    "Result": "launch",
    "Run": "records.run",
    "Scores": "loop.evaluation",
    "default_directory": "launch",
    "estimate": "estimation",
    "load": "records.locations",
    "train": "request",
}

__all__ = [
    "Callback",
    "Estimate",
    "Experiment",
    "Narrator",
    "Result",
    "Run",
    "Scores",
    "default_directory",
    "estimate",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the settings of an experiment are read without PyTorch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'resode.training' has no attribute '{name}'")
    return getattr(importlib.import_module(f"resode.training.{_PUBLIC[name]}"), name)
