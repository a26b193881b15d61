"""resode: residual networks as the differential equations they discretise.

import resode

model = resode.create("he_resnet20", classes=10)  # or, composed:
time = resode.TimeGrid.uniform(steps=4)
model = resode.DynamicNet([resode.Stage(width, "parabolic", "rk4", time) for width in (16, 32, 64)])
experiment = resode.Experiment.from_recipe("he2016/resnet20", {"epochs": 10})
result = resode.train(model, experiment)
model = resode.load(result.run.path)
logits = model(model.preprocessing(images))
"""

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from resode.version import __version__

with contextlib.suppress(ImportError):  # optional: the folder may be deleted
    from resode import kernels  # noqa: F401  # registers the C++ kernels, by name

if TYPE_CHECKING:
    from resode.data import load as load_data
    from resode.grids import TimeGrid
    from resode.models import DynamicNet, create, regrid, twist
    from resode.recipes import list_recipes
    from resode.stages import Stage
    from resode.training import Experiment, evaluate, load, train


_PUBLIC = {
    "DynamicNet": ("resode.models", "DynamicNet"),
    "Experiment": ("resode.training", "Experiment"),
    "Stage": ("resode.stages", "Stage"),
    "TimeGrid": ("resode.grids", "TimeGrid"),
    "create": ("resode.models", "create"),
    "evaluate": ("resode.training", "evaluate"),
    "list_recipes": ("resode.recipes", "list_recipes"),
    "load": ("resode.training", "load"),
    "load_data": ("resode.data", "load"),
    "regrid": ("resode.models", "regrid"),
    "train": ("resode.training", "train"),
    "twist": ("resode.models", "twist"),
}

__all__ = [
    "DynamicNet",
    "Experiment",
    "Stage",
    "TimeGrid",
    "__version__",
    "create",
    "evaluate",
    "list_recipes",
    "load",
    "load_data",
    "regrid",
    "train",
    "twist",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line answers `--help` without loading PyTorch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'resode' has no attribute '{name}'")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)
