"""`resode show`: a recipe with everything resolved, or what a weights file holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.cli.options import PluginOption, SettingsOption
from resode.errors import InputError
from resode.plugins import load_plugins

if TYPE_CHECKING:
    from resode.analysis.costs import RecipeCost
    from resode.training import Experiment
    from resode.weights import Preprocessing, Specification

Rows = list[tuple[str, str]]


def show(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe, a YAML file, a run, a .safetensors file, or the name of pretrained weights.",
        ),
    ],
    settings: SettingsOption = None,
    plugin: PluginOption = None,
) -> None:
    """Show a recipe or a run: source, equation, cost, published and expected result, every setting.

    For a weights file: the network, its preprocessing, and where the weights come from. For a network of
    dynamic blocks also each block: equation, scheme, time grids, evaluations, cost, warnings.

    Examples:

        resode show he2016/resnet20

        resode show he2016/resnet20 --set epochs=10

        resode show runs/r20/model.safetensors

        resode show short/resnet20-conformal

    \f
    """
    load_plugins(plugin)
    from resode.training.records.networks import weights_rather_than_recipe

    if (file := weights_rather_than_recipe(recipe)) is None:
        _show_recipe(recipe, settings or [])
    elif settings:
        raise InputError(f"--set: {recipe} holds trained weights; only a recipe has settings")
    else:
        _show_weights(file)


def _show_recipe(recipe: str, settings: list[str]) -> None:
    from resode.analysis.costs import explain_blocks, recipe_cost
    from resode.cli.console import say
    from resode.training import Experiment

    experiment = Experiment.from_recipe(recipe, settings)
    cost = recipe_cost(experiment)
    for label, text in [*_about(experiment), *(_costs(experiment, cost) if cost else [])]:
        if text:
            say(f"{label:<15} {text}")
    say("")
    if blocks := explain_blocks(experiment):
        say(f"{blocks}\n")
    say(experiment.to_yaml(without=["about"]).rstrip())


def _about(experiment: "Experiment") -> Rows:
    from resode import pretrained

    about = experiment.about
    published = about.published
    trained = pretrained.file(experiment.name) is not None
    figure = f"{published.top1_error:.2f} % top-1 error ({published.source})" if published else ""
    return [
        ("recipe", experiment.name),
        ("", about.summary),
        ("source", about.source),
        ("equation", about.equation),
        ("command", about.command),
        ("cost", about.cost),
        ("published", figure),
        ("expected", about.expected),
        ("weights", f"come with the package (`resode evaluate {experiment.name}`)" if trained else ""),
    ]


def _costs(experiment: "Experiment", cost: "RecipeCost") -> Rows:
    """Parameters, multiply-adds, and the memory of a training step with each gradient method."""
    from resode.quantities import size

    rows = [("model", f"{cost.model}, {cost.network.parameters:,} parameters")]
    if cost.shape is None or cost.network.multiply_adds is None:
        return rows
    image = "x".join(map(str, cost.shape))
    rows.append(("multiply-adds", f"{cost.network.multiply_adds / 1e6:,.1f} M an image of {image}"))
    parts = zip(("parameters", "gradients", "optimizer"), map(size, cost.fixed_bytes), strict=True)
    listed = ", ".join(f"{name} {bytes_}" for name, bytes_ in parts)
    precision = "bf16" if experiment.precision == "bf16" else "fp32"
    step = f"of a step at batch {experiment.batch_size} in {precision}: {listed}, and activations:"
    rows.append(("memory", step))
    for each in cost.steps:
        total = size(sum(cost.fixed_bytes) + each.activation_bytes)
        again = f", {each.recomputed:.2f} forward passes recomputed" if each.recomputed else ""
        rows.append(("", f"{each.name:<25} {size(each.activation_bytes):>9}, in all {total:>9}{again}"))
    return rows


def _show_weights(file: Path) -> None:
    from resode import weights
    from resode.cli.console import say
    from resode.models import DynamicNet
    from resode.quantities import size

    card = weights.read_card(file)
    rows = [("file", f"{file} ({size(file.stat().st_size)})")]
    if card.specification is None:
        rows.append(("model", "a module that is no registered model (weights.load_into reads it)"))
    else:
        rows += _model(card.specification, card.preprocessing)
    rows += _input(card.preprocessing)
    rows += [(key.replace("_", " "), str(value)) for key, value in card.training.items()]
    for label, text in rows:
        say(f"{label:<15} {text}")
    module = None if card.specification is None else weights.load(file)
    blocks = ""
    if isinstance(module, DynamicNet):
        blocks = "\n" + module.explain((card.preprocessing.channels, *card.preprocessing.size))
    say(blocks)


def _model(specification: "Specification", preprocessing: "Preprocessing") -> Rows:
    from resode.analysis.costs import network_cost

    cost = network_cost(specification.build, (preprocessing.channels, *preprocessing.size))
    plain = {key: value for key, value in specification.options.items() if not _nested(value)}
    options = ", ".join(f"{key}={_short(value)}" for key, value in plain.items())
    return [
        ("model", f"{specification.name} ({options})"),
        ("parameters", f"{cost.parameters:,}"),
        ("multiply-adds", f"{(cost.multiply_adds or 0) / 1e6:,.1f} M an image"),
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
