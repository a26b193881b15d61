"""`resode show`: a recipe with everything resolved, a run, a model, or what a weights file holds."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.cli.completion import shown_names
from resode.cli.listing import say
from resode.cli.options import (
    BatchSizeOption,
    EpochsOption,
    LearningRateOption,
    PluginOption,
    SettingsOption,
    overrides,
    shortcuts,
)
from resode.errors import InputError
from resode.plugins import load_plugins

if TYPE_CHECKING:
    from resode.catalogue import RecipeCost
    from resode.training import Experiment
    from resode.weights import Preprocessing, Specification

Rows = list[tuple[str, str]]


def show(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe, a YAML file, a run, a model, a .safetensors file, or pretrained weights.",
            autocompletion=shown_names,
        ),
    ],
    settings: SettingsOption = None,
    epochs: EpochsOption = None,
    lr: LearningRateOption = None,
    batch_size: BatchSizeOption = None,
    plugin: PluginOption = None,
) -> None:
    """Show a recipe, a run, a model or weights: source, equation, cost, result, every setting.

    In a file or a pipe, a recipe is YAML with comments, which `resode train` reads. A run shows how far it
    is and its result so far; a weights file its network, its preprocessing and its origin. For a network of
    dynamic blocks also each block: equation, scheme, time grids, evaluations, cost, warnings.

    Examples:

        resode show quickstart

        resode show quickstart > my.yaml

        resode show he2016/resnet20 --epochs 10 --set optimizer.nesterov=true

        resode show he_resnet20

        resode show runs/r20

        resode show short/resnet20-conformal

    \f
    """
    load_plugins(plugin)
    changes = overrides(settings, shortcuts(epochs, lr, batch_size))
    kind = _kind(recipe)
    if kind != "recipe" and changes:
        raise InputError(f"--set: {recipe} {_HOLDS[kind]}; only a recipe has settings")
    if kind == "recipe":
        _show_recipe(recipe, changes)
    elif kind == "run":
        _show_run(Path(recipe))
    elif kind == "model":
        _show_model(recipe)
    else:
        _show_weights(_weights_file(recipe))


_HOLDS = {
    "run": "is a run, which keeps its settings",
    "model": "is a model, which has options",
    "weights": "holds trained weights",
}


def _kind(name: str) -> str:
    """What a word stands for: recipe, run, model or weights."""
    from resode import catalogue, pretrained, recipes

    path = Path(name)
    if path.is_dir():
        return "run"
    if path.suffix == ".safetensors":
        return "weights"
    if path.exists() or name in recipes.files():
        return "recipe"
    if pretrained.file(name) is not None:
        return "weights"
    if name in catalogue.models():
        return "model"
    from resode.training.records.networks import is_model  # a family's other depths, and plug-ins

    return "model" if is_model(name) else "recipe"


def _weights_file(name: str) -> Path:
    from resode import pretrained

    return pretrained.file(name) or Path(name)


def _print(rows: Rows) -> None:
    for label, text in rows:
        if text:
            say(f"{label:<15} {text}")


# ---------------------------------------------------------------- recipes


def _show_recipe(recipe: str, changes: dict[str, Any]) -> None:
    """On a terminal a page, the settings below the facts; elsewhere YAML, the facts as its comments."""
    from resode.training.recipe.commented import commented
    from resode.training.recipe.experiment import Experiment
    from resode.training.records.departures import departures, holding

    experiment = Experiment.from_recipe(recipe, changes)
    changed = departures(experiment.model_dump(mode="json"))
    experiment = holding(experiment)
    cost = _cost(experiment, unchanged=not changes)
    costs = _costs(experiment, cost) if cost else []
    blocks = _blocks(experiment) if cost is not None and cost.dynamic else ""
    if sys.stdout.isatty():
        _print([*_about(experiment, changed), *costs])
        say(f"\n{blocks}" if blocks else "")
        say(experiment.to_yaml(without=["about"]).rstrip())
        return
    rows = [*(_changed_row(experiment, changed) or _weights_row(experiment)), *costs]
    facts = [f"{label:<15} {text}" for label, text in rows if text]
    say(commented(experiment, [*facts, *blocks.splitlines()]).rstrip())


def _cost(experiment: "Experiment", *, unchanged: bool) -> "RecipeCost | None":
    """From the catalogue where the recipe is one of the package's as it stands, else computed."""
    from resode import catalogue, recipes

    known = catalogue.recipe(experiment.name) if unchanged and experiment.name in recipes.files() else None
    if known is not None and _same_as_packaged(experiment):
        return known
    from resode.analysis.costs import recipe_cost

    return recipe_cost(experiment)


def _same_as_packaged(experiment: "Experiment") -> bool:
    """Whether it is the recipe of its name; a file may have taken the name and changed the rest."""
    from resode.training.recipe.experiment import Experiment

    return experiment == Experiment.from_recipe(experiment.name)


def _blocks(experiment: "Experiment") -> str:
    from resode.analysis.costs import explain_blocks

    return explain_blocks(experiment)


def _about(experiment: "Experiment", changed: Sequence[str]) -> Rows:
    about = experiment.about
    published = about.published
    figure = f"{published.top1_error:.2f} % top-1 error ({published.source})" if published else ""
    return [
        *(_changed_row(experiment, changed) or [("recipe", experiment.name)]),
        ("", about.summary),
        ("source", about.source),
        ("equation", about.equation),
        ("command", about.command),
        ("cost", about.cost),
        ("published", figure),
        ("expected", about.expected),
        *(("differs" if i == 0 else "", text) for i, text in enumerate(about.differs)),
        *([] if changed else _weights_row(experiment)),
    ]


def _changed_row(experiment: "Experiment", changed: Sequence[str]) -> Rows:
    """What departs from the recipe of the package that has this name."""
    return [("recipe", f"{experiment.name} with other {', '.join(changed)}")] if changed else []


def _weights_row(experiment: "Experiment") -> Rows:
    from resode import pretrained

    if pretrained.file(experiment.name) is None:
        return []
    return [("weights", f"come with the package (`resode evaluate {experiment.name}`)")]


def _costs(experiment: "Experiment", cost: "RecipeCost") -> Rows:
    """Parameters, multiply-adds, and the memory of a training step with each gradient method."""
    from resode.quantities import size

    rows = [("model", f"{cost.model}, {cost.network.parameters:,} parameters")]
    if cost.shape is None or cost.network.multiply_adds is None:
        return rows
    image = "x".join(map(str, cost.shape))
    rows.append(("multiply-adds", f"{cost.network.work} an image of {image}{cost.network.counted}"))
    parts = zip(("parameters", "gradients", "optimizer"), map(size, cost.fixed_bytes), strict=True)
    listed = ", ".join(f"{name} {bytes_}" for name, bytes_ in parts)
    precision = "bf16" if experiment.precision == "bf16" else "fp32"
    step = f"of a step at batch {experiment.batch_size} in {precision}: {listed}, and activations"
    rows.append(("memory", f"{step}{cost.network.counted}:"))
    for each in cost.steps:
        total = size(sum(cost.fixed_bytes) + each.activation_bytes)
        again = f", {each.recomputed:.2f} forward passes recomputed" if each.recomputed else ""
        rows.append(("", f"{each.name:<25} {size(each.activation_bytes):>9}, in all {total:>9}{again}"))
    return rows


# ---------------------------------------------------------------- runs


def _show_run(path: Path) -> None:
    """The result of a run so far, what it is made of, and its settings."""
    from resode import report
    from resode.cli.console import out
    from resode.training.records.departures import holding
    from resode.training.records.run import Run

    out.print(report.table(path))
    run = Run(path)
    if run.exists:
        experiment = holding(run.read_experiment())
        held_out = f", {experiment.data.validation:g} held out" if experiment.data.validation else ""
        _print([("", experiment.about.summary), ("source", experiment.about.source),
                ("data", experiment.data.source + held_out)])  # fmt: skip
        if not run.finished:
            say(f"go on with `resode train --resume --out {path}`")
        say("")
        say(experiment.to_yaml(without=["about"]).rstrip())


# ---------------------------------------------------------------- models and weights


def _show_model(name: str) -> None:
    """Cost and options of a registered model, and the recipes that train it."""
    from resode import catalogue, recipes
    from resode.training.recipe.options import options_of
    from resode.training.recipe.reading import model_of

    facts = catalogue.models().get(name)
    if facts is None:
        from resode.analysis.costs import model_facts

        facts = model_facts(name)
    rows = [("model", name), ("", facts.summary)]
    if facts.cost is not None and facts.shape is not None:
        rows.append(("parameters", f"{facts.cost.parameters:,}"))
        image = "x".join(map(str, facts.shape))
        rows.append(("multiply-adds", f"{facts.cost.work} an image of {image}{facts.cost.counted}"))
    train = sorted(
        (recipe for recipe in recipes.files() if model_of(recipe) == name),
        key=lambda recipe: not recipe.startswith("he2016/"),
    )
    recipe = train[0] if train else "modern/resnet18"
    change = "" if train else f" --set model.name={name}"
    rows += [("recipes", ", ".join(train)), ("train", f"resode train {recipe}{change}")]
    for number, option in enumerate(options_of("model", name)):
        rows.append(
            ("" if number else "options", f"{option.name}={option.default}  {option.description}".strip())
        )
    _print(rows)


def _show_weights(file: Path) -> None:
    from resode import weights
    from resode.models import DynamicNet
    from resode.quantities import size

    card = weights.read_card(file)
    rows = [("file", f"{file} ({size(file.stat().st_size)})")]
    if card.specification is None:
        rows.append(("model", "a network made in Python, which is no registered model"))
    else:
        rows += _model(card.specification, card.preprocessing)
    rows += _input(card.preprocessing)
    rows += [(key.replace("_", " "), str(value)) for key, value in card.training.items()]
    _print(rows)
    module = None if card.specification is None else weights.load(file)
    if isinstance(module, DynamicNet):
        say("\n" + module.explain((card.preprocessing.channels, *card.preprocessing.size)))


def _model(specification: "Specification", preprocessing: "Preprocessing") -> Rows:
    from resode.analysis.costs import network_cost

    cost = network_cost(specification.build, (preprocessing.channels, *preprocessing.size))
    plain = {key: value for key, value in specification.options.items() if not _nested(value)}
    options = ", ".join(f"{key}={_short(value)}" for key, value in plain.items())
    return [
        ("model", f"{specification.name} ({options})"),
        ("parameters", f"{cost.parameters:,}"),
        ("multiply-adds", f"{cost.work} an image{cost.counted}"),
    ]


def _input(preprocessing: "Preprocessing") -> Rows:
    shape = "x".join(map(str, (preprocessing.channels, *preprocessing.size)))
    mean, std = (
        ", ".join(f"{value:.4g}" for value in values) for values in (preprocessing.mean, preprocessing.std)
    )
    classes = preprocessing.classes
    return [
        ("input", f"{shape}, normalised by mean {mean}, std {std}"),
        ("classes", f"{len(classes)}: {', '.join(classes[:20])}"),
    ]


def _short(value: Any) -> str:
    """An option, a long list abbreviated."""
    if isinstance(value, list) and len(value) > 4:
        return f"[{value[0]}, ... {len(value)} in all]"
    return str(value)


def _nested(value: Any) -> bool:
    """Whether an option is too long for a line, like the stages of a network, which are explained below."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_nested, value)))
