"""`resode show`: a recipe, resolved."""

from typing import TYPE_CHECKING, Annotated

import typer

from resode.cli.options import PluginOption, load_plugins

if TYPE_CHECKING:
    from resode.training import Experiment


def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file, or a run.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value; repeatable.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Show a recipe: source, equation, cost, published and expected result, and every setting.

    Examples:

        resode show he2016/resnet20

        resode show he2016/resnet20 --set epochs=10

    \f
    """
    load_plugins(plugin)
    from resode.cli.console import out
    from resode.training import Experiment

    experiment = Experiment.from_recipe(recipe, settings or ())
    for label, text in [*_about(experiment), *_costs(experiment)]:
        if text:
            out.print(f"{label:<15} {text}", highlight=False, markup=False, soft_wrap=True)
    out.print()
    settings_only = experiment.model_copy(update={"about": type(experiment.about)()})
    out.print(settings_only.to_yaml(), highlight=False, markup=False, soft_wrap=True, end="")


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
    from resode.cli.console import format_bytes
    from resode.models import models

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
    bill = cost.estimate(module, shape, experiment.batch_size)
    rows.append(("multiply-adds", f"{bill.multiply_adds / 1e6:,.1f} M an image of {size}"))
    fixed = bill.parameter_bytes + bill.gradient_bytes + bill.optimiser_bytes
    rows.append(
        (
            "memory",
            f"{format_bytes(fixed)} parameters, gradients, optimiser + {format_bytes(bill.activation_bytes)} "
            f"activations at batch {experiment.batch_size} in fp32",
        )
    )
    return rows
