"""Networks by name: what a word on the command line stands for besides the path of a run.

A registered model (`he_resnet20`) stands for a network with new weights, the same at each call.
"""

from pathlib import Path

import torch

from resode import weights
from resode.errors import InputError
from resode.models import create, models, name_and_options

SEED = 0  # of new weights
CLASSES = tuple(map(str, range(10)))


def is_model(name: str) -> bool:
    """Whether `name` is a registered model that needs no options, and not a path that exists."""
    try:
        return not Path(name).exists() and not models.entry(name).required
    except InputError:
        return False


def new_network(name: str) -> weights.Loaded:
    """A registered model with new weights (seed 0), with a card like that of a weights file.

    Its preprocessing is (x - 0.5) / 0.25, its classes are called 0 to 9.

    Raises:
        InputError: no such model, or one that needs options.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = create(name)
    channels, height, width = models.entry(name).shape or (3, 32, 32)
    preprocessing = weights.Preprocessing(
        (0.5,) * channels, (0.25,) * channels, (height, width), channels, CLASSES
    )
    made = name_and_options(module)
    assert made is not None  # `create` made it
    card = weights.Card(weights.Specification(*made), preprocessing, {"new": True})
    return weights.with_card(module, card)
