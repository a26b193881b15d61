"""Completion: the names that the shell offers for an argument. Loads no PyTorch, so that a tab is quick.

`resode --install-completion` sets it up for the shell.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

RUN = "experiment.yaml"  # a folder that holds it is a run
DEPTH = 2  # folders below the one named so far in which runs are looked for: runs/NAME, studies/NAME/ARM
KINDS = ("models", "recipes", "fields", "integrators", "data")


def recipe_names(incomplete: str) -> list[str]:
    """Recipes, runs and YAML files: what `resode train` takes."""
    from resode import recipes

    return _beginning(incomplete, (*recipes.files(), *_runs(incomplete), *_files(incomplete, ".yaml")))


def shown_names(incomplete: str) -> list[str]:
    """Recipes, runs, YAML files, models and weights: what `resode show` takes."""
    return [*recipe_names(incomplete), *_beginning(incomplete, _models()), *weights_names(incomplete)]


def network_names(incomplete: str) -> list[str]:
    """Runs, weights and pretrained names: what commands take that need a trained network."""
    return [*_beginning(incomplete, _runs(incomplete)), *weights_names(incomplete)]


def network_or_model_names(incomplete: str) -> list[str]:
    """Runs, weights, pretrained names and models."""
    return [*network_names(incomplete), *_beginning(incomplete, _models())]


def weights_names(incomplete: str) -> list[str]:
    """Weights files, and the names of pretrained weights."""
    from resode import pretrained

    return _beginning(incomplete, (*pretrained.names(), *_files(incomplete, ".safetensors")))


def matching_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the kind that `resode list` was asked for."""
    from resode import recipes

    names = {"models": _models(), "recipes": tuple(recipes.files())}
    return _beginning(incomplete, names.get(str(ctx.params.get("kind")), ()))


def study_files(incomplete: str) -> list[str]:
    """YAML files: what `resode study` takes."""
    return _beginning(incomplete, _files(incomplete, ".yaml"))


def keys(incomplete: str) -> list[str]:
    """Keys of an experiment: what `resode explain` takes."""
    from resode.training.recipe.experiment import Experiment
    from resode.training.recipe.keys import every_path

    return _beginning(incomplete, every_path(Experiment))


def _models() -> tuple[str, ...]:
    from resode import catalogue

    return tuple(catalogue.models())


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _runs(incomplete: str) -> Iterator[str]:
    """Runs in the folder that is named so far, and below."""
    folder = _folder(incomplete)
    for depth in range(DEPTH + 1):
        for found in sorted(folder.glob(f"{'*/' * depth}{RUN}")):
            yield str(found.parent)


def _files(incomplete: str, suffix: str) -> Iterator[str]:
    yield from (str(path) for path in sorted(_folder(incomplete).glob(f"*{suffix}")))


def _folder(incomplete: str) -> Path:
    named = Path(incomplete)
    return named if incomplete.endswith("/") else named.parent
