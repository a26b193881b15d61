"""Training: experiments as data, one readable loop, runs that survive anything."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resode.training.estimation import Estimate, estimate
    from resode.training.launch import Result, default_directory, train
    from resode.training.loop.evaluation import Scores, evaluate
    from resode.training.loop.progress import Observer
    from resode.training.recipe.experiment import Experiment
    from resode.training.records.locations import load
    from resode.training.records.run import Run

_PUBLIC = {
    "Estimate": "estimation",
    "Experiment": "recipe.experiment",
    "Observer": "loop.progress",
    "Result": "launch",
    "Run": "records.run",
    "Scores": "loop.evaluation",
    "default_directory": "launch",
    "estimate": "estimation",
    "evaluate": "loop.evaluation",
    "load": "records.locations",
    "train": "launch",
}

__all__ = [
    "Estimate",
    "Experiment",
    "Observer",
    "Result",
    "Run",
    "Scores",
    "default_directory",
    "estimate",
    "evaluate",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the settings of an experiment are read without PyTorch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'resode.training' has no attribute '{name}'")
    return getattr(importlib.import_module(f"resode.training.{_PUBLIC[name]}"), name)
