"""resode: residual networks as the differential equations they discretise.

import resode

model = resode.create("he_resnet20", classes=10)
experiment = resode.Experiment.from_recipe("he2016/resnet20", {"epochs": 10})
result = resode.train(model, experiment)
model = resode.load(result.run.path)
logits = model(model.preprocessing(images))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resode.data import load as load_data
    from resode.models import create
    from resode.training import Experiment, evaluate, load, train

__version__ = "0.1.0"

_PUBLIC = {
    "Experiment": ("resode.training", "Experiment"),
    "create": ("resode.models", "create"),
    "evaluate": ("resode.training", "evaluate"),
    "load": ("resode.training", "load"),
    "load_data": ("resode.data", "load"),
    "train": ("resode.training", "train"),
}

__all__ = ["Experiment", "__version__", "create", "evaluate", "load", "load_data", "train"]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line answers `--help` without loading PyTorch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'resode' has no attribute '{name}'")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)
