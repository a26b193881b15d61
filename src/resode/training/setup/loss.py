"""Loss: a function of the user's that is minimised in place of cross-entropy, and its record in a run."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from resode.errors import InputError
from resode.registry import IN_PYTHON
from resode.training.recipe.experiment import CROSS_ENTROPY, Experiment

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (N, classes), class numbers (N,)) -> scalar


def record_of(loss: Loss | str) -> str:
    """What an experiment records of a loss: its name, and whether the function is the user's.

    Raises:
        InputError: a text that names no loss, or no function.
    """
    if isinstance(loss, str):
        if loss != CROSS_ENTROPY:
            raise InputError(
                f"unknown loss '{loss}'; give '{CROSS_ENTROPY}' or a function (logits, labels) -> scalar"
            )
        return loss
    if isinstance(loss, type):
        raise InputError(f"loss cannot be the class {loss.__name__}; give a loss of it: {loss.__name__}()")
    if not callable(loss):
        raise InputError(
            f"loss cannot be {loss!r}; give a function (logits, labels) -> scalar, or '{CROSS_ENTROPY}'"
        )
    return str(getattr(loss, "__qualname__", type(loss).__name__)) + IN_PYTHON


def checked(loss: Loss | None, experiment: Experiment, classes: int, device: torch.device) -> Loss | None:
    """The loss on the device, if it is the one that the experiment records and fits its settings.

    Raises:
        InputError: a run resumed without its loss; a loss that gives no scalar with a gradient; settings that
            only cross-entropy has.
    """
    if experiment.loss != CROSS_ENTROPY and loss is None:
        raise InputError(
            f"loss: the run minimises '{experiment.loss}', which it does not store; go on in Python, where "
            "the loss can be given again"
        )
    if loss is None or experiment.loss == CROSS_ENTROPY:
        return None
    for key, value in (
        ("augment.mixup", experiment.augment.mixup),
        ("label_smoothing", experiment.label_smoothing),
    ):
        if value:
            raise InputError(f"{key}: belongs to cross-entropy; set it to 0 with a loss of your own")
    if isinstance(loss, nn.Module):
        if any(p.requires_grad for p in loss.parameters()):
            raise InputError(
                "loss: has parameters, which would not be trained; make them part of the network"
            )
        loss = loss.to(device)
    _try(loss, classes, device)
    return loss


def _try(loss: Loss, classes: int, device: torch.device) -> None:
    """Call the loss once as the training does."""
    logits = torch.zeros(2, classes, device=device, requires_grad=True)
    targets = torch.tensor([0, classes - 1], device=device)
    try:
        with torch.enable_grad():
            value = loss(logits, targets)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(
            f"loss: fails on logits (2, {classes}) and labels (2,) of int64: {first or type(error).__name__}"
        ) from error
    if not isinstance(value, Tensor) or value.ndim:
        got = (
            f"a tensor of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"{type(value).__name__}"
        )
        raise InputError(f"loss: gives {got}; give a scalar tensor, such as the mean over the images")
    if not value.requires_grad:
        raise InputError(
            "loss: has no gradient with respect to the logits; compute it by differentiable operations"
        )
