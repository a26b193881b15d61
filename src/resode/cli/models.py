"""Models that a command is given by name instead of weights: new ones, the same at each call."""

from pathlib import Path
from typing import TYPE_CHECKING

from resode.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def names_a_model(path: str) -> bool:
    """Whether it is no file, but the name of a model that needs no options."""
    from resode.models import models

    try:
        return not Path(path).exists() and not models.entry(path).required
    except InputError:
        return False


def new_model(name: str) -> "tuple[nn.Module, tuple[int, int, int]]":
    """A registered model with new weights (seed 0), and the shape (C, H, W) of its images."""
    import torch

    from resode.models import create, models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name), models.entry(name).shape or (3, 32, 32)
