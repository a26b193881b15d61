"""`resode show`: a recipe, resolved."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resode.cli.options import PluginOption, load_plugins

if TYPE_CHECKING:
    from resode.training import Experiment
    from resode.weights import Specification


def show(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file, a run, or a .safetensors file.")
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value; repeatable.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Show a recipe or a run: source, equation, cost, published and expected result, every setting.

    Of a weights file: the network, its preprocessing, and where the weights come from.

    Examples:

        resode show he2016/resnet20

        resode show he2016/resnet20 --set epochs=10

        resode show runs/r20/model.safetensors

    \f
    """
    load_plugins(plugin)
    from resode.cli.console import say
    from resode.training import Experiment

    if Path(recipe).suffix == ".safetensors" and not Path(recipe).is_dir():
        for label, text in _weights(Path(recipe)):
            say(f"{label:<15} {text}")
        return
    experiment = Experiment.from_recipe(recipe, settings or ())
    for label, text in [*_about(experiment), *_costs(experiment)]:
        if text:
            say(f"{label:<15} {text}")
    say("")
    settings_only = experiment.model_copy(update={"about": type(experiment.about)()})
    say(settings_only.to_yaml().rstrip())


def _weights(file: Path) -> list[tuple[str, str]]:
    """What a weights file says of itself."""
    from resode import weights
    from resode.report.quantities import size

    card = weights.read_card(file)
    specification, preprocessing = card.specification, card.preprocessing
    rows = [("file", f"{file} ({size(file.stat().st_size)})")]
    if specification is None:
        rows.append(("model", "a module that is no registered model (weights.load_into reads it)"))
    else:
        options = ", ".join(f"{key}={value}" for key, value in specification.options.items())
        rows += [("model", f"{specification.name} ({options})"), *_model_costs(specification)]
    shape = "x".join(map(str, (preprocessing.channels, *preprocessing.size)))
    numbers = [
        ", ".join(f"{value:.4g}" for value in values) for values in (preprocessing.mean, preprocessing.std)
    ]
    rows.append(("input", f"{shape}, normalised by mean {numbers[0]}, std {numbers[1]}"))
    rows.append(("classes", f"{len(preprocessing.classes)}: {', '.join(preprocessing.classes[:20])}"))
    return rows + [(key.replace("_", " "), str(value)) for key, value in card.training.items()]


def _model_costs(specification: "Specification") -> list[tuple[str, str]]:
    """Parameters and multiply-adds of a network, without its numbers."""
    import torch

    from resode import cost
    from resode.models import models

    with torch.device("meta"):
        module = specification.build()
    rows = [("parameters", f"{cost.parameters(module):,}")]
    shape = models.entry(specification.name).shape
    if shape is not None:
        shape = (specification.options.get("in_channels", shape[0]), *shape[1:])
        rows.append(("multiply-adds", f"{cost.multiply_adds(module, shape) / 1e6:,.1f} M an image"))
    return rows


def _about(experiment: "Experiment") -> list[tuple[str, str]]:
    about = experiment.about
    published = about.published
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
    ]


def _costs(experiment: "Experiment") -> list[tuple[str, str]]:
    """Parameters, multiply-adds and memory of the network, without allocating it."""
    import torch

    from resode import cost
    from resode.models import models
    from resode.report.quantities import size as in_bytes
    from resode.training.estimate import predicted_cost

    if experiment.model is None:
        return []
    entry = models.entry(experiment.model.name)
    with torch.device("meta"):
        module = entry.build(**experiment.model.options)
    rows = [("model", f"{experiment.model.name}, {cost.parameters(module):,} parameters")]
    if entry.shape is None:
        return rows
    shape = (experiment.model.options.get("in_channels", entry.shape[0]), *entry.shape[1:])
    size = "x".join(map(str, shape))
    bill = predicted_cost(experiment, module, shape)
    rows.append(("multiply-adds", f"{bill.multiply_adds / 1e6:,.1f} M an image of {size}"))
    fixed = bill.parameter_bytes + bill.gradient_bytes + bill.optimiser_bytes
    rows.append(
        (
            "memory",
            f"{in_bytes(fixed)} parameters, gradients, optimiser + {in_bytes(bill.activation_bytes)} "
            f"activations at batch {experiment.batch_size} in "
            f"{'bf16' if experiment.precision == 'bf16' else 'fp32'}",
        )
    )
    return rows
