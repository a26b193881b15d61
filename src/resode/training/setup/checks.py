"""Misfits: a network that its experiment or its images do not fit is refused before a run begins.

Each check raises `InputError`, which names the mend.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resode.blocks import dynamic_blocks
from resode.controls import controls_of
from resode.errors import InputError
from resode.memory import Shape
from resode.mode import mode
from resode.models import create
from resode.training.process.distributed import World
from resode.training.recipe.experiment import Experiment
from resode.training.setup.changes import changed
from resode.training.setup.image_sizes import resized_shape


def refuse_misfits(options: Mapping[str, Any], found: Mapping[str, int], data: str) -> None:
    """Refuse (`InputError`) classes or channels of a model that are not those of the data."""
    for key, value in found.items():
        if options.get(key, value) != value:
            raise InputError(
                f"model.{key}={options[key]} does not fit the data {data}, which has {value}; leave it out"
            )


def check_model(experiment: Experiment, module: nn.Module | None) -> None:
    """Can the network be built, and do smoothness, box and changes on the way fit it?"""
    network = _without_numbers(experiment) if module is None else module
    if network is None:
        return
    asked = {
        "smoothness": experiment.smoothness is not None,
        "box": experiment.box is not None,
        "refine": bool(experiment.refine),
    }
    if not controls_of(network):
        mistakes = [
            f"{key}: the network has no dynamic blocks whose theta(t) it could act on; leave it out"
            for key, given in asked.items()
            if given
        ]
        if mistakes:
            raise InputError(*mistakes)
    check_precision(network)
    for change in experiment.changes:
        network, _ = changed(network, change)
        check_precision(network)


def check_precision(network: nn.Module) -> None:
    """Can every block be trained in fp32, the precision of states and parameters?"""
    for block in dynamic_blocks(network):
        block.check(torch.float32)


def _without_numbers(experiment: Experiment) -> nn.Module | None:
    """The network on the meta device; None where a user's own needs numbers to be built."""
    if experiment.model is None:
        return None
    try:
        with torch.device("meta"):
            return create(experiment.model.name, **experiment.model.options)
    except InputError as error:
        unknown = any("unknown" in line for line in error.messages)
        made = [f"was made with --plugin {plugin.path}" for plugin in experiment.plugins if unknown]
        raise InputError(*(f"{experiment.name}: {line}" for line in (*error.messages, *made))) from None
    except RuntimeError:
        return None


@torch.no_grad()
def check_network(module: nn.Module, shape: Shape, classes: int, data: str, device: torch.device) -> None:
    """One image through the network: does it take this size, and give a logit for every class?"""
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError("the network has no trainable parameter")
    other = next((p.dtype for p in module.parameters() if p.dtype != torch.float32), None)
    if other is not None:
        raise InputError(
            f"the network has parameters of {other}; training keeps them in fp32: module.float()"
        )
    try:
        with mode(module, training=False):
            logits = module(torch.zeros(1, *shape, device=device))
    except RuntimeError as error:
        size, first = "x".join(map(str, shape)), str(error).splitlines()[0]
        raise InputError(f"the network does not take the images of {data} ({size}): {first}") from None
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the network gives an output of shape {got} for one image; {data} has {classes} classes"
        )


def check_size(shape: Shape, size: int | None, data: str) -> Shape:
    """The shape of an image whose shorter side is `size`; larger than the images makes no sense."""
    if size is not None and size > min(shape[1:]):
        raise InputError(f"sizes: {size} is larger than the images of {data} ({shape[1]}x{shape[2]})")
    return resized_shape(shape, size)


def check_smallest_batch(
    module: nn.Module, shape: Shape, samples: int, batch_size: int, device: torch.device, world: World
) -> None:
    """Where a process gets a single image of a batch: can the network be trained on that?"""
    sizes = (min(batch_size, samples), samples % batch_size or batch_size)
    if all(size // world.size > 1 for size in sizes):
        return
    trial = copy.deepcopy(module)
    try:
        with mode(trial, training=True), torch.no_grad():
            trial(torch.zeros(1, *shape, device=device))
    except ValueError as error:
        raise InputError(
            f"the last batch of an epoch would be a single image ({samples:,} in batches of "
            f"{batch_size}{f', {world.size} processes' if world.size > 1 else ''}): {error}; choose another "
            "batch_size"
        ) from None
