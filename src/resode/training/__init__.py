"""Training: experiments as data, one readable loop, runs that survive anything."""

from resode.training.estimate import Estimate, estimate
from resode.training.launch import Result, default_directory
from resode.training.loop.callbacks import Callback
from resode.training.loop.evaluation import Scores
from resode.training.narrator import Narrator
from resode.training.recipe.experiment import Experiment
from resode.training.records.locations import load
from resode.training.records.run import Run
from resode.training.request import train

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
