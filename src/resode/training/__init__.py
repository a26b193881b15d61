"""Training: experiments as data, one readable loop, runs that survive anything."""

from resode.training.estimate import Estimate, estimate
from resode.training.launch import Result, default_directory, train
from resode.training.loop.evaluation import Scores, evaluate
from resode.training.loop.progress import Observer
from resode.training.recipe.experiment import Experiment
from resode.training.records.locations import load
from resode.training.records.run import Run

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
