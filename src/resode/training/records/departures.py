"""Departures: the settings in which an experiment departs from the recipe of the package that it comes from.

What a recipe publishes and expects holds for its own data, network, training length and optimizer alone. An
experiment comes from the recipe whose name it has, or else, as a file with `base:` or a copy under another
name, from the recipes with which its header agrees.
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


# Parts of a header that hold for a recipe as it stands.
_OF_RECIPE: Final = ("summary", "command", "cost", "published", "expected")


def not_its_own(experiment: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts of an experiment's header that are of a recipe of the package from which it departs."""
    if experiment.get("name") in recipes.files():
        return _OF_RECIPE if departures(experiment) else ()
    about = experiment.get("about")
    stated = {key: about[key] for key in _OF_RECIPE if about.get(key)} if isinstance(about, Mapping) else {}
    known = [each for each in map(_recipe, recipes.files() if stated else ()) if each is not None]
    kept = {id(each): not any(_differing(experiment, each, "")) for each in known}
    origins = {key: [each for each in known if each["about"][key] == value] for key, value in stated.items()}
    return tuple(key for key, found in origins.items() if found and not any(kept[id(each)] for each in found))


def holding(experiment: Experiment) -> Experiment:
    """The experiment, its header without the parts that are of a recipe from which it departs."""
    dropped = not_its_own(experiment.model_dump(mode="json"))
    about = {key: value for key, value in experiment.about.model_dump().items() if key not in dropped}
    return experiment.replace(about=about) if dropped else experiment


@functools.cache
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
