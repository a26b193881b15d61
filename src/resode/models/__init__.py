"""Models by name: what `resode list models` shows and `resode.create` builds.

The name of a model is its family and its depth. The two families of He et al. hold every depth 6n + 2, not
only the depths that are listed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from resode.models.he import he_preact_resnet, he_resnet, units_per_stage
from resode.models.resnet import DEPTHS, cifar_resnet
from resode.registry import Entry, Registry

__all__ = ["create", "created_as", "models"]

models: Registry[nn.Module] = Registry("model", "models")

CIFAR = (3, 32, 32)
_CREATED_AS = "_created_as"  # a plain attribute: it rides along in copies, not in the state_dict
HE_DEPTHS = (20, 32, 44, 56, 110, 1202)


def create(name: str, *, classes: int = 10, in_channels: int | None = None, **options: Any) -> nn.Module:
    """Build a model by its name.

    Args:
        name: a registered name (`resode list models`) or any `he_resnet{6n+2}`, `he_preact_resnet{6n+2}`.
        classes: the number of logits.
        in_channels: the number of channels of an image; the model's usual number where left out.
        options: what else the model takes (`resode.models.he.he_resnet` and others say what).

    Raises:
        InputError: an unknown name or option, or an impossible value.
    """
    options["classes"] = classes
    if in_channels is not None:
        options["in_channels"] = in_channels
    module = models.build(name, **options)
    setattr(module, _CREATED_AS, (name, options))
    return module


def created_as(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The name and options that `create` made a module (or what it is a copy of) with; None for others."""
    made: tuple[str, dict[str, Any]] | None = getattr(module, _CREATED_AS, None)
    return made


def _family(prefix: str, factory: Callable[..., nn.Module], summary: str) -> None:
    def entry(name: str) -> Entry[nn.Module]:
        depth = int(name.removeprefix(prefix))
        units_per_stage(depth)  # refuses an impossible depth before anything is built
        return Entry(name, partial(factory, depth), summary.format(depth=depth), CIFAR)

    for depth in HE_DEPTHS:
        models.register(f"{prefix}{depth}", summary=summary.format(depth=depth), shape=CIFAR)(
            partial(factory, depth)
        )
    models.register_family(prefix + r"\d{1,5}", entry)


_family("he_resnet", he_resnet, "He et al. 2016: CIFAR ResNet-{depth}")
_family("he_preact_resnet", he_preact_resnet, "He et al. 2016b: CIFAR pre-activation ResNet-{depth}")
for _depth in DEPTHS:
    models.register(
        f"cifar_resnet{_depth}", summary=f"ResNet-{_depth} with a stem for small images", shape=CIFAR
    )(partial(cifar_resnet, _depth))
for _data, _side in (("digits", 8), ("mnist", 28)):
    for _depth in (8, 14):
        models.register(
            f"{_data}_resnet{_depth}",
            summary=f"He's ResNet-{_depth} for grey {_side}x{_side} images",
            shape=(1, _side, _side),
        )(partial(he_resnet, _depth, in_channels=1))
