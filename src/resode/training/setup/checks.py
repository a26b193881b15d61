"""Checks before a run begins: does the network fit its images?

Each raises `InputError`, which names the fix.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resode.errors import InputError
from resode.memory import Shape
from resode.mode import mode
from resode.training.recipe.data import Sizing
from resode.training.recipe.experiment import Experiment
from resode.training.setup.data import TrainingData
from resode.training.setup.image_sizes import resized_shape
from resode.training.setup.placement import Placement


def check_fits_data(options: Mapping[str, object], by_data: Mapping[str, int], data: str) -> None:
    """Classes and channels of a model, where given, are those of the data."""
    for key, value in by_data.items():
        if options.get(key, value) != value:
            raise InputError(
                f"model.{key}={options[key]} does not fit the data {data}, which has {value}; remove it"
            )


def check_images(
    module: nn.Module, data: TrainingData, sizes: Sequence[Sizing], batch_size: int, where: Placement
) -> None:
    """The network takes the images in all sizes, and can be trained on the smallest batch."""
    for size in (None, *(sizing.size for sizing in sizes)):
        shape = _checked_size(data, size)
        check_network(module, shape, len(data.classes), data.dataset.name)
        check_smallest_batch(module, shape, len(data.train_index), batch_size, where)


def _checked_size(data: TrainingData, size: int | None) -> Shape:
    """The shape of an image whose shorter side becomes `size`, which must not be larger than it is."""
    _, height, width = data.shape
    if size is not None and size > min(height, width):
        raise InputError(f"sizes: {size} is larger than the images of {data.dataset.name} ({height}x{width})")
    return resized_shape(data.shape, size)


def check_has_values(module: nn.Module) -> None:
    """Every parameter has values: none waits for a first batch, none is on the device "meta"."""
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"the network's parameter {name} has no shape yet; call it once: net(images)")
        if parameter.is_meta:
            raise InputError(
                f"the network's parameter {name} has no values (device meta); build the network on the CPU, "
                "or call net.to_empty(device='cpu') and initialise it"
            )


@torch.no_grad()
def check_network(module: nn.Module, shape: Shape, classes: int, data: str) -> None:
    """The network takes an image of shape (C, H, W) and gives a logit for every class."""
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError("the network has no trainable parameter")
    other = next((p.dtype for p in module.parameters() if p.dtype != torch.float32), None)
    if other is not None:
        raise InputError(
            f"the network has parameters of {other}; training keeps them in fp32: module.float()"
        )
    check_output(module, shape, classes, data)


@torch.no_grad()
def check_output(
    module: nn.Module, shape: Shape, classes: int | None, data: str, dtype: torch.dtype = torch.float32
) -> None:
    """In evaluation mode, the network gives logits for an image of shape (C, H, W); None: of any number."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        with mode(module, training=False):
            logits = module(torch.zeros(1, *shape, device=device, dtype=dtype))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        size, first = "x".join(map(str, shape)), (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the network does not take the images of {data} ({size}): {first}") from error
    expected = (1, classes) if classes is not None else logits.shape if isinstance(logits, Tensor) else ()
    if not isinstance(logits, Tensor) or logits.shape != expected or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        has = f"{data} has {classes} classes" if classes is not None else "logits (N, classes) are needed"
        raise InputError(f"the network gives an output of shape {got} for one image; {has}")


def check_smallest_batch(
    module: nn.Module, shape: Shape, samples: int, batch_size: int, where: Placement
) -> None:
    """Where a rank gets a single image of a batch: the network can be trained on that."""
    ranks = where.world.size
    if all(size // ranks > 1 for size in (min(batch_size, samples), samples % batch_size or batch_size)):
        return
    if problem := _problem_of_one_image(module, shape, where):
        raise InputError(
            f"the last batch of an epoch would be a single image ({samples:,} in batches of "
            f"{batch_size}{f', {ranks} processes' if ranks > 1 else ''}): {problem}; "
            "choose another batch_size"
        )


def check_statistics(module: nn.Module, data: TrainingData, experiment: Experiment, where: Placement) -> None:
    """Where statistics are to be estimated on single images: the network can be trained on one."""
    average, shape = experiment.average, data.shape
    found = {"average.samples": average.samples} if average is not None else {}
    if average is not None or experiment.changes:
        found["evaluation.batch_size"] = experiment.evaluation.batch_size
    for key, size in found.items():
        if size == 1 and (problem := _problem_of_one_image(module, shape, where)):
            raise InputError(
                f"{key}: statistics of normalisations would be those of a single image: {problem}; "
                "choose more"
            )


def _problem_of_one_image(module: nn.Module, shape: Shape, where: Placement) -> str:
    """Why the network cannot be trained on a batch of one image; empty if it can."""
    trial = copy.deepcopy(module)
    try:
        with mode(trial, training=True), torch.no_grad():
            trial(torch.zeros(1, *shape, device=where.device))
    except ValueError as error:
        return str(error)
    return ""
