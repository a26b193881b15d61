"""`resode show`: a recipe, resolved."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.cli.options import PluginOption, load_plugins

if TYPE_CHECKING:
    from torch import nn

    from resode.training import Experiment
    from resode.weights import Preprocessing, Specification


def show(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A recipe, YAML file, run, .safetensors file or shipped weights."
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value; repeatable.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Show a recipe or a run: source, equation, cost, published and expected result, every setting.

    Of a weights file: the network, its preprocessing, and where the weights come from. A network of dynamic
    blocks explains each: equation, scheme, time grids, evaluations, cost, and what to beware of.

    Examples:

        resode show he2016/resnet20

        resode show he2016/resnet20 --set epochs=10

        resode show runs/r20/model.safetensors

        resode show short/resnet20-conformal

    \f
    """
    load_plugins(plugin)
    from resode.cli.console import say
    from resode.errors import InputError
    from resode.training import Experiment

    if (file := _weights_file(recipe)) is not None:
        if settings:
            raise InputError(f"--set: {recipe} holds trained weights; settings are those of a recipe")
        for label, text in _weights(file):
            say(f"{label:<15} {text}")
        say(_blocks_of_file(file))
        return
    experiment = Experiment.from_recipe(recipe, settings or ())
    for label, text in [*_about(experiment), *_costs(experiment)]:
        if text:
            say(f"{label:<15} {text}")
    say("")
    if blocks := _blocks_of_recipe(experiment):
        say(f"{blocks}\n")
    say(experiment.to_yaml(without=["about"]).rstrip())


def _weights_file(name: str) -> Path | None:
    """The weights file that a name stands for: a path, or shipped weights whose name is that of no recipe."""
    from resode import pretrained
    from resode.training.recipe import reading

    path = Path(name)
    if path.suffix == ".safetensors" and not path.is_dir():
        return path
    return None if path.exists() or name in reading.shipped() else pretrained.file(name)


def _weights(file: Path) -> list[tuple[str, str]]:
    """What a weights file says of itself."""
    from resode import weights
    from resode.quantities import size

    card = weights.read_card(file)
    specification, preprocessing = card.specification, card.preprocessing
    rows = [("file", f"{file} ({size(file.stat().st_size)})")]
    if specification is None:
        rows.append(("model", "a module that is no registered model (weights.load_into reads it)"))
    else:
        plain = {key: value for key, value in specification.options.items() if not _nested(value)}
        options = ", ".join(f"{key}={_short(value)}" for key, value in plain.items())
        rows += [("model", f"{specification.name} ({options})"), *_model_costs(specification, preprocessing)]
    shape = "x".join(map(str, (preprocessing.channels, *preprocessing.size)))
    numbers = [
        ", ".join(f"{value:.4g}" for value in values) for values in (preprocessing.mean, preprocessing.std)
    ]
    rows.append(("input", f"{shape}, normalised by mean {numbers[0]}, std {numbers[1]}"))
    rows.append(("classes", f"{len(preprocessing.classes)}: {', '.join(preprocessing.classes[:20])}"))
    return rows + [(key.replace("_", " "), str(value)) for key, value in card.training.items()]


def _short(value: Any) -> str:
    """An option in a few words."""
    if isinstance(value, list) and len(value) > 4:
        return f"[{value[0]}, ... {len(value)} in all]"
    return str(value)


def _nested(value: Any) -> bool:
    """Whether an option is too much for a line, as the stages of a network are; its blocks explain them."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_nested, value)))


def _model_costs(specification: "Specification", preprocessing: "Preprocessing") -> list[tuple[str, str]]:
    """Parameters and multiply-adds of a network, without its numbers."""
    import torch

    from resode import cost

    with torch.device("meta"):
        module = specification.build()
    multiply_adds = cost.multiply_adds(module, (preprocessing.channels, *preprocessing.size))
    return [
        ("parameters", f"{cost.parameters(module):,}"),
        ("multiply-adds", f"{multiply_adds / 1e6:,.1f} M an image"),
    ]


def _blocks_of_file(file: Path) -> str:
    """What the dynamic blocks of a weights file say of themselves."""
    from resode import weights
    from resode.models import DynamicNet

    if weights.read_card(file).specification is None:
        return ""
    module = weights.load(file)
    if not isinstance(module, DynamicNet):
        return ""
    shape = (module.preprocessing.channels, *module.preprocessing.size)
    return "\n" + module.explain(shape)


def _blocks_of_recipe(experiment: "Experiment") -> str:
    """What the dynamic blocks of a recipe's network say of themselves, with their initial weights."""
    import torch

    from resode.models import DynamicNet, create

    if experiment.model is None:
        return ""
    name, options = experiment.model.name, _options(experiment)
    with torch.device("meta"):
        if not isinstance(create(name, **options), DynamicNet):
            return ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        module = create(name, **options)
    assert isinstance(module, DynamicNet)
    return module.explain(_shape(experiment), experiment.batch_size)


def _shape(experiment: "Experiment") -> tuple[int, int, int] | None:
    """(C, H, W) of the images: of the data where it is known, else of the model's usual input."""
    from resode.data import sources
    from resode.models import models

    section, model = experiment.data, experiment.model
    assert model is not None
    usual = models.entry(model.name).shape
    known = sources.entry(section.source).shape if section.source in sources.names() else None
    if usual is None or known is None:
        return None if usual is None else (model.options.get("in_channels", usual[0]), *usual[1:])
    side = section.image_size
    return (known[0], side, side) if side is not None else known


def _options(experiment: "Experiment") -> dict[str, Any]:
    """The options of the model, with what the data decides where it is known."""
    from resode.data.catalogue import KNOWN
    from resode.models import models
    from resode.training.setup.checks import refuse_misfits

    model, shape = experiment.model, _shape(experiment)
    assert model is not None
    classes = {known.name: len(known.classes) for known in KNOWN}.get(experiment.data.source)
    found = {"classes": classes, "in_channels": None if shape is None else shape[0]}
    taken = models.entry(model.name).options()
    decided = {key: value for key, value in found.items() if value is not None and key in taken}
    refuse_misfits(model.options, decided, experiment.data.source)
    return {**decided, **model.options}


def _about(experiment: "Experiment") -> list[tuple[str, str]]:
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


def _costs(experiment: "Experiment") -> list[tuple[str, str]]:
    """Parameters, multiply-adds and memory of the network, without allocating it."""
    import torch

    from resode import cost
    from resode.models import models

    if experiment.model is None:
        return []
    with torch.device("meta"):
        module = models.build(experiment.model.name, **_options(experiment))
    rows = [("model", f"{experiment.model.name}, {cost.parameters(module):,} parameters")]
    shape = _shape(experiment)
    if shape is None:
        return rows
    size = "x".join(map(str, shape))
    work = cost.multiply_adds(module, shape)
    rows.append(("multiply-adds", f"{work / 1e6:,.1f} M an image of {size}"))
    return rows + _memory(experiment, module, shape)


def _memory(
    experiment: "Experiment", module: "nn.Module", shape: tuple[int, int, int]
) -> list[tuple[str, str]]:
    """The memory of a training step, as the recipe says and with the fewest bytes of each gradient method."""
    from resode.models.budget import set_gradients
    from resode.quantities import size
    from resode.training.setup.memory import budget, fitted, fixed_bytes

    fixed = fixed_bytes(experiment, module)
    precision = "bf16" if experiment.precision == "bf16" else "fp32"
    parts = zip(("parameters", "gradients", "optimizer"), map(size, fixed), strict=True)
    listed = ", ".join(f"{name} {bytes_}" for name, bytes_ in parts)
    step = f"of a step at batch {experiment.batch_size} in {precision}: {listed}, and activations:"
    rows = [("memory", step)]

    def line(name: str, activations: int, again: float) -> None:
        times = f", {again:.2f} forward passes done again" if again else ""
        rows.append(
            ("", f"{name:<25} {size(activations):>9}, in all {size(sum(fixed) + activations):>9}{times}")
        )

    if experiment.gradients is not None:
        set_gradients(module, experiment.gradients)
    choices = budget(experiment, module, shape)
    if experiment.memory_budget is None or experiment.gradients is not None:
        line("as the recipe says", choices.current_bytes(), 0)
    for choice in choices.smallest_by_kind():
        line(choice.name, choice.activation_bytes, choice.recomputed)
    if experiment.memory_budget is not None and experiment.gradients is None:
        chosen, _ = fitted(experiment, module, shape, choices)
        line("chosen: " + chosen.name, chosen.activation_bytes, chosen.recomputed)
    return rows
