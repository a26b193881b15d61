"""Departures: the settings in which a run departs from the recipe of the package that it is named after.

What a recipe publishes and expects holds for its own data, network, training length and optimizer alone.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

from resode import recipes
from resode.errors import InputError
from resode.training.recipe.experiment import Experiment

# Settings that change no result but in rounding or by chance, and those that a run measures or resolves.
_FREE: Final = frozenset(
    {
        "name", "about", "seed", "device", "precision", "compile", "cuda_graph", "sync_batchnorm",
        "evaluation", "checkpoint", "memory_budget", "gradients", "drift", "plugins", "data.fingerprint",
        "data.on_bad_image", "model.classes", "model.in_channels", "init.sha256", "init.optimizer_sha256",
    }
)  # fmt: skip
_MEASURED: Final = frozenset({"data.mean", "data.std"})  # free where the recipe leaves them to the data


def departures(experiment: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted keys in which an experiment, as a run records it, differs from the packaged recipe of its name.

    Empty where no recipe has that name. A section that an earlier version did not record counts as unchanged,
    and a key that it did not record within a section as left at its default.
    """
    recipe = _recipe(str(experiment.get("name")))
    return () if recipe is None else tuple(_differing(_completed(experiment), recipe, ""))


def _completed(experiment: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the defaults of keys that its sections do not record."""
    try:
        whole = Experiment.from_values(experiment, "").model_dump(mode="json")
    except InputError:  # it needs a plug-in that is not loaded
        return experiment
    return {key: whole[key] for key in experiment if key in whole}


@functools.lru_cache
def _recipe(name: str) -> Mapping[str, Any] | None:
    if name not in recipes.files():
        return None
    try:
        return Experiment.from_recipe(name).model_dump(mode="json")
    except InputError:  # a recipe needs a plug-in that is not loaded
        return None


def _differing(run: Mapping[str, Any], recipe: Mapping[str, Any], path: str) -> Iterator[str]:
    options = path == "model."
    for key in dict.fromkeys((*run, *recipe)) if options else run:
        dotted, value, other = f"{path}{key}", run.get(key), recipe.get(key)
        if dotted in _FREE or (dotted in _MEASURED and other is None) or not (options or key in recipe):
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from _differing(value, other, f"{dotted}.")
        elif value != other:
            yield dotted
