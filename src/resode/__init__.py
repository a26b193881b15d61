"""resode: residual networks as the differential equations they discretise.

import resode
from resode import DynamicNet, Stage, TimeGrid
from resode.fields import Parabolic
from resode.integrators import RK4

time = TimeGrid.uniform(steps=4)
heat = DynamicNet([Stage(width, Parabolic(norm="tv"), RK4(), states=time) for width in (16, 32, 64)])
finer = resode.regrid(heat, states="double")
net = resode.create("he_resnet20", classes=10)  # by name: resode.list_models()

recipe = resode.Experiment.from_recipe("he2016/resnet20", {"epochs": 10})
result = resode.train(net, recipe)
net = resode.load(result.run.path)
"""

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from resode.errors import nearest
from resode.version import __version__

with contextlib.suppress(ImportError):  # optional: the folder may be deleted
    from resode import kernels  # noqa: F401  # registers the C++ kernels, by name

if TYPE_CHECKING:
    from resode import (
        analysis,
        data,
        fields,
        gradients,
        integrators,
        interop,
        models,
        operators,
        plugins,
        training,
    )
    from resode.blocks import DynamicBlock
    from resode.data import load as load_data
    from resode.grids import TimeGrid
    from resode.inference import evaluate, predict
    from resode.models import DynamicNet, create, fit_memory, lift, list_models, regrid, set_gradient, twist
    from resode.recipes import list_recipes
    from resode.stages import Stage
    from resode.training import Experiment, load, train

# Each public name: a module, or module:attribute. `import resode` imports none of them, and no PyTorch.
_PUBLIC = {
    "DynamicBlock": "resode.blocks:DynamicBlock",
    "DynamicNet": "resode.models:DynamicNet",
    "Experiment": "resode.training:Experiment",
    "Stage": "resode.stages:Stage",
    "TimeGrid": "resode.grids:TimeGrid",
    "analysis": "resode.analysis",
    "create": "resode.models:create",
    "data": "resode.data",
    "evaluate": "resode.inference:evaluate",
    "fields": "resode.fields",
    "fit_memory": "resode.models:fit_memory",
    "gradients": "resode.gradients",
    "integrators": "resode.integrators",
    "interop": "resode.interop",
    "lift": "resode.models:lift",
    "list_models": "resode.models:list_models",
    "list_recipes": "resode.recipes:list_recipes",
    "load": "resode.training:load",
    "load_data": "resode.data:load",
    "models": "resode.models",
    "operators": "resode.operators",
    "plugins": "resode.plugins",
    "predict": "resode.inference:predict",
    "regrid": "resode.models:regrid",
    "set_gradient": "resode.models:set_gradient",
    "train": "resode.training:train",
    "training": "resode.training",
    "twist": "resode.models:twist",
}

__all__ = [
    "DynamicBlock",
    "DynamicNet",
    "Experiment",
    "Stage",
    "TimeGrid",
    "__version__",
    "analysis",
    "create",
    "data",
    "evaluate",
    "fields",
    "fit_memory",
    "gradients",
    "integrators",
    "interop",
    "lift",
    "list_models",
    "list_recipes",
    "load",
    "load_data",
    "models",
    "operators",
    "plugins",
    "predict",
    "regrid",
    "set_gradient",
    "train",
    "training",
    "twist",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'resode' has no attribute '{name}'{nearest(name, _PUBLIC)}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return __all__
