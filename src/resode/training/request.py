"""Request: what a program asks `resode.train` for, as an experiment, a network and its images.

A network without a recipe is trained by SGD: 10 epochs, Nesterov momentum 0.9, learning rate 0.05 with a
linear warm-up over the first tenth of the epochs and a cosine decay, weight decay 5e-4, batches of 128 (fewer
where an epoch would have less than ten steps), no augmentation, a tenth of the images for validation.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from resode.data import Dataset, dataset_of, hub, sources
from resode.data.matching import image_size
from resode.data.sources import load
from resode.errors import InputError, nearest
from resode.registry import IN_PYTHON
from resode.streams import notebook_cell
from resode.training import launch
from resode.training.launch import Result
from resode.training.loop.callbacks import Callback, Callbacks
from resode.training.narrator import Narrator
from resode.training.process.distributed import World
from resode.training.recipe import reading
from resode.training.recipe.experiment import CROSS_ENTROPY, Experiment
from resode.training.recipe.keys import sections_in
from resode.training.setup.checks import check_has_values
from resode.training.setup.loss import Loss, record_of

Recipe = str | PathLike[str] | Experiment | Mapping[str, Any]
EPOCHS = 10  # of a network without a recipe
ARGUMENTS = ("data", "epochs", "lr", "batch_size", "loss", "callbacks", "out", "resume", "progress")


def train(
    net_or_recipe: nn.Module | Recipe,
    recipe: Recipe | None = None,
    *,
    data: Any = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    loss: Loss | str | None = None,
    callbacks: Sequence[Callback] = (),
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Train a network, or the network of a recipe, in a run directory.

        resode.train(net, data=(images, labels), epochs=5, lr=0.05)
        resode.train("quickstart", epochs=3, augment={"crop": 1})
        resode.train(net, "he2016/resnet20", data="photos/", seed=1)

    Args:
        net_or_recipe: a network (N, C, H, W) -> logits (N, classes), which is trained in place (with `refine`
            or `twist` the result holds another one); or a recipe: its name, a YAML file, a run directory, a
            mapping, an `Experiment`.
        recipe: for a network, the recipe to train it by; default: the settings above.
        data: arrays (images, labels), with or without (test_images, test_labels), uint8 or floats; a
            map-style torch Dataset, or a pair of them; a loaded data set; a folder; a name. Default: the
            recipe's.
        epochs: passes over the training images.
        lr: the learning rate at the peak of its schedule (`optimizer.lr`).
        batch_size: images a step.
        loss: (logits, labels) -> scalar, the mean over the images; default: cross-entropy.
        callbacks: what is called on the way (`resode.training.Callback`).
        out: the run directory. Default: `runs/<name>-seed<seed>`, or the first of `...-2`, `...-3`, ... that
            does not exist.
        resume: continue the run in `out` from its last checkpoint, with the same arguments; start one if
            there is none.
        progress: show a bar and a line an epoch.
        settings: any other key of an experiment, a section as a mapping: `seed=1`,
            `augment={"crop": 4, "flip": True}`, `optimizer="adamw"`, `**{"data.validation": 0}`.

    Raises:
        InputError: settings, network, data or directory that do not fit together.
        DivergenceError: NaN or infinity; names step and layer, and saves nothing of it.
        Stopped: by Ctrl-C, a notebook's interrupt or SIGTERM, after saving; says how to resume.
        ResourceError: disk or device do not suffice; the last checkpoint is whole.
    """
    module, recipe = _network_and_recipe(net_or_recipe, recipe)
    if module is not None:
        check_has_values(module)
    _check_callbacks(callbacks)
    _check_settings(settings)
    given = None if data is None or isinstance(data, str | PathLike) else dataset_of(data)
    changes = _source(data, given) | dict(_flat(settings))
    changes |= _known({"epochs": epochs, "optimizer.lr": lr, "batch_size": batch_size})
    changes |= {"loss": record_of(loss)} if loss is not None else {}
    narrator = Narrator() if progress and World.from_environment().first else None
    if recipe is None:
        assert module is not None
        experiment, given = _without_recipe(module, changes, given, narrator or Callback())
    else:
        experiment = _experiment(recipe, changes)
    listeners = [*([narrator] if narrator is not None else []), *callbacks]
    try:
        result = launch.train(
            module,
            experiment,
            out=_directory(experiment, out, resume),
            resume=resume,
            callback=Callbacks(listeners) if listeners else None,
            dataset=given,
            loss=None if isinstance(loss, str) else loss,
        )
    finally:
        if narrator is not None:
            narrator.close()
    if narrator is not None:
        narrator.message(str(result))
        result = dataclasses.replace(result, shown_in=notebook_cell())
    return result


# ---------------------------------------------------------------- checks


def _network_and_recipe(
    first: nn.Module | Recipe, recipe: Recipe | None
) -> tuple[nn.Module | None, Recipe | None]:
    """The network, if there is one, and the recipe, if there is one."""
    forms = (str, PathLike, Experiment, Mapping)
    names = "a recipe's name, a YAML file, a run directory, a mapping or an Experiment"
    if isinstance(first, type):
        raise InputError(f"{first.__name__} is a class; give a network of it: {first.__name__}(...)")
    if recipe is not None and not isinstance(recipe, forms):
        fix = "; data is a keyword: data=..." if isinstance(first, nn.Module) else ""
        raise InputError(f"recipe cannot be of type {type(recipe).__name__}; give {names}{fix}")
    if isinstance(first, nn.Module):
        return getattr(first, "_orig_mod", first), recipe  # from torch.compile; `compile=True` compiles here
    if not isinstance(first, forms):
        raise InputError(
            f"train cannot take a value of type {type(first).__name__}; give a network (nn.Module), {names}"
        )
    if recipe is not None:
        raise InputError("train takes one recipe; give its changes as keywords, such as epochs=5")
    return None, first


def _check_callbacks(callbacks: Sequence[Callback]) -> None:
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        single = "a single one" if isinstance(callbacks, Callback) else repr(callbacks)
        raise InputError(f"callbacks cannot be {single}; give a tuple: callbacks=(callback,)")
    for each in callbacks:
        if not isinstance(each, Callback):
            what = (
                f"the class {each.__name__}" if isinstance(each, type) else f"of type {type(each).__name__}"
            )
            raise InputError(
                f"a callback is {what}; give an instance of a subclass of resode.training.Callback"
            )


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `InputError` for keywords that are no key of an experiment."""
    unknown = [key for key in settings if key.partition(".")[0] not in Experiment.model_fields]
    if unknown:
        raise InputError(*(f"unknown setting '{key}'{_hint(key)}" for key in unknown))


def _hint(key: str) -> str:
    """Where a keyword belongs, or the nearest one."""
    if key == "learning_rate":
        return "; did you mean 'lr'?"
    fields = Experiment.model_fields
    for section, info in fields.items():
        if any(key in each.model_fields for each in sections_in(info.annotation)):
            return f"; it belongs to {section}: {section}={{'{key}': ...}}"
    return nearest(key, [*ARGUMENTS, *fields]) or " (`resode explain` lists them)"


# ---------------------------------------------------------------- the experiment


def _experiment(recipe: Recipe, changes: Mapping[str, Any]) -> Experiment:
    """The experiment of a recipe with changes by dotted key."""
    if isinstance(recipe, Experiment) and not changes:
        return recipe
    if isinstance(recipe, Experiment | Mapping):
        values = (
            recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else {"name": "mapping", **recipe}
        )
        return Experiment.from_values(reading.overridden(values, changes.items()), str(values["name"]))
    return Experiment.from_recipe(Path(recipe) if isinstance(recipe, PathLike) else recipe, changes)


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by dotted key, sections that are given as a mapping taken apart."""
    for key, value in settings.items():
        if key in ("optimizer", "schedule") and not isinstance(value, Mapping):
            if not isinstance(value, str):
                kind = type(value).__name__
                raise InputError(f"{key}: cannot be of type {kind}; give a name, or a mapping that has one")
            yield f"{key}.name", value
        elif isinstance(value, Mapping) and key in (
            "data",
            "optimizer",
            "augment",
            "evaluation",
            "checkpoint",
        ):
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, str(value) if isinstance(value, torch.device) else value


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _defaults(module: nn.Module, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network without a recipe."""
    epochs = changes.get("epochs", EPOCHS)
    warmup = {"epochs": epochs / 10} if isinstance(epochs, int | float) and epochs > 0 else None
    sgd = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    return {
        "name": type(module).__name__,
        "epochs": epochs,
        "loss": CROSS_ENTROPY,
        "optimizer": sgd,
        "schedule": {"name": "cosine", "warmup": warmup},
    }


def _without_recipe(
    module: nn.Module, changes: dict[str, Any], given: Dataset | None, callback: Callback
) -> tuple[Experiment, Dataset]:
    """The experiment of a network without a recipe, and its images, whose number decides some settings."""
    if "data.source" not in changes:
        dataset_of(None)  # says what may be given
    experiment = _experiment(_defaults(module, changes), changes)
    if given is None:
        section = experiment.data
        callback.message(f"reading {section.source}")
        given = load(section.source, image_size=section.image_size, on_bad_image=section.on_bad_image)
    return _experiment(_defaults(module, changes), _fitted(given) | changes), given


def _fitted(dataset: Dataset) -> dict[str, Any]:
    """Batch size and validation part for this number of images."""
    count, classes = len(dataset.train), len(dataset.classes)
    batch = min(128, max(8, 2 ** int(math.log2(max(count / 10, 1)))))
    return {"batch_size": batch, "data.validation": 0.1 if count >= 20 * classes else 0}


def _source(data: Any, dataset: Dataset | None) -> dict[str, Any]:
    """Settings by which the images could be read again, or a source that says that they were given."""
    if dataset is None:
        return {} if data is None else {"data.source": str(data)}
    name, size = dataset.name, dataset.train.pixels.shape[1:3]
    named = name in sources.names() or name.startswith(hub.PREFIX) or Path(name).is_dir()
    if name.endswith(IN_PYTHON) or not named:
        return {"data.source": name.removesuffix(IN_PYTHON) + IN_PYTHON, "data.image_size": None}
    skip = {"data.on_bad_image": "skip"} if dataset.skipped else {}
    return {"data.source": name, "data.image_size": image_size(name, (size[0], size[1])), **skip}


def _directory(experiment: Experiment, out: str | PathLike[str] | None, resume: bool) -> Path:
    """The run directory; by default one that does not exist yet."""
    if out is not None:
        if not isinstance(out, str | PathLike):
            raise InputError(f"out cannot be {out!r}; give the path of a run directory")
        return Path(out)
    if resume:
        raise InputError("resume=True continues the run in out=...; name its directory")
    base = launch.default_directory(experiment)
    if World.from_environment().size > 1:  # the same for all ranks
        return base
    numbered = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in itertools.count(1))
    return next(path for path in numbered if not path.exists())
