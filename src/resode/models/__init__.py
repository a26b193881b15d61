"""Models by name: what `resode list models` shows and `resode.create` builds.

The name of a model is its family and its depth. The families of He et al. accept every depth 6n + 2, not only
the listed ones.
"""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from resode.errors import InputError
from resode.gradients import Gradient, gradients
from resode.models.catalogue import CIFAR, by_depth, list_models, models

# In the order of `resode list models`.
# isort: off
from resode.models.he import he_resnet, units_per_stage
from resode.models.resnet import cifar_resnet  # noqa: F401  # its decorator registers
from resode.models.dynamic import DynamicNet
from resode.models import published
# isort: on

from resode.models.budget import fit_memory, set_gradient
from resode.models.lifting import lift
from resode.models.regridding import regrid
from resode.models.twisting import Where, chosen_convolutions
from resode.models.twisting import twist as twisted_copy

__all__ = [
    "DynamicNet",
    "create",
    "fit_memory",
    "lift",
    "list_models",
    "models",
    "name_and_options",
    "regrid",
    "set_gradient",
    "twist",
    "why_unnamed",
]

_CREATED_AS = "_created_as"  # a plain attribute: copied by deepcopy, absent from the state_dict


def create(name: str, *, classes: int = 10, in_channels: int | None = None, **options: Any) -> nn.Module:
    """Build a model by its name.

        create("he_resnet20", classes=100, shortcut="B")

    Args:
        name: a registered name (`resode list models`) or any `he_resnet{6n+2}`, `he_preact_resnet{6n+2}`.
        classes: the number of logits.
        in_channels: the channels of an image (default: the model's own, 3 for most).
        options: further options of the model, documented at its function (`resode.models.he.he_resnet`, ...).

    Raises:
        InputError: an unknown name or option, or an invalid value.
    """
    options["classes"] = classes
    if in_channels is not None:
        options["in_channels"] = in_channels
    module = models.build(name, **options)
    if not isinstance(module, DynamicNet) and isinstance(options.get("gradient"), Gradient):
        options["gradient"] = gradients.describe(options["gradient"])
    if not isinstance(module, DynamicNet) or _is_json(options):
        setattr(module, _CREATED_AS, (name, options))
    return module


def name_and_options(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Name and options from which `create` builds a module like this one; None if there are none.

    These are the arguments with which it (or the module it is a copy of) was created. A network of dynamic
    blocks that was composed in Python, or created with objects as options (such as a `TimeGrid`), is a
    `dynamic` with its own stages; it has no name if a field or an integrator is not registered.
    """
    created: tuple[str, dict[str, Any]] | None = getattr(module, _CREATED_AS, None)
    if created is None and isinstance(module, DynamicNet):
        try:
            return "dynamic", module.options()
        except InputError:
            return None
    return created


def why_unnamed(module: nn.Module) -> str:
    """Why `name_and_options` has no name for a module, and what gives it one."""
    if isinstance(module, DynamicNet):
        try:
            module.options()
        except InputError as error:
            return str(error)
    return (
        f"the {type(module).__name__} is no registered model: put @models.register('NAME') on the function "
        "that makes it, load that by --plugin FILE, and make it by resode.create('NAME')"
    )


def twist(model: nn.Module, where: Where = None, **options: Any) -> nn.Module:
    """Copy a network and twist its convolutions: K u -> K u + X (Wx u) + Y (Wy u), Wx = Wy = 0 at first.

    A twisted copy of a model from `create` can be saved and rebuilt from its file.

    Args:
        model: any network; unchanged.
        where: which convolutions: stages, names, patterns or a function (default: all 3x3 ones).
        options: tie, degree, coordinates and form, as for `resode.models.twisting.twist`.

    Raises:
        InputError: nothing to twist, an unknown stage or name, an invalid option.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"twist {model!r}: a network is needed, such as resode.create(NAME)")
    new = twisted_copy(model, where, **options)
    created = name_and_options(model)
    if created is not None:
        name, of_plain = created
        of: dict[str, Any] = {"name": name, **of_plain}
        outer = {key: of.pop(key) for key in ("classes", "in_channels") if key in of}
        described: dict[str, Any] = {"of": of, "where": chosen_convolutions(model, where)}
        setattr(new, _CREATED_AS, ("twisted", described | options | outer))
    return new


def _is_json(options: Mapping[str, Any]) -> bool:
    """Whether JSON can hold the options, so that a file can."""
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


@models.register("twisted", summary="any of these models with twisted convolutions", shape=CIFAR)
def twisted(
    *,
    of: str | Mapping[str, Any],
    where: Where = None,
    tie: str = "conformal",
    degree: int = 1,
    coordinates: str = "centred",
    form: str = "auto",
    classes: int = 10,
    in_channels: int | None = None,
) -> nn.Module:
    """A model with its convolutions twisted (`resode.models.twisting`).

    Args:
        of: the name of a model, or a mapping with its name and options.
        where: which convolutions: stages, names or patterns of names (default: all 3x3 ones).
        tie: free, odd, conformal, saddle or mixed.
        degree: of the polynomials.
        coordinates: centred, per-axis or published.
        form: how it is computed (`resode.operators.twist.TwistConv2d`).
        classes: the number of logits.
        in_channels: the channels of an image (default: the model's own).

    Raises:
        InputError: an unknown model or option, or nothing to twist.
    """
    options: dict[str, Any] = dict(of) if isinstance(of, Mapping) else {"name": of}
    if not isinstance(options.get("name"), str):
        raise InputError(f"twisted: 'of' is the name of a model, or a mapping with its name, not {of!r}")
    plain = create(options.pop("name"), classes=classes, in_channels=in_channels, **options)
    return twisted_copy(plain, where, tie=tie, degree=degree, coordinates=coordinates, form=form)


_PREACTIVATIONS = (20, 32, 44, 56)
by_depth(
    "lm_resnet",
    _PREACTIVATIONS,
    summary="Lu et al. 2018: LM-ResNet-{depth}, a learned two-step scheme",
    check=units_per_stage,
)(published.lm_resnet)
by_depth(
    "momentum_resnet",
    _PREACTIVATIONS,
    summary="Sander et al. 2021: momentum ResNet-{depth}",
    check=units_per_stage,
    integrator="momentum",
)(published.preactivation_net)
by_depth("revnet", published.REVNETS, summary="Gomez et al. 2017: RevNet-{depth}, reversible")(
    published.revnet
)
for _data, _side in (("digits", 8), ("mnist", 28)):
    by_depth(
        f"{_data}_resnet",
        (8, 14),
        summary=f"He's ResNet-{{depth}} for grey {_side}x{_side} images",
        shape=(1, _side, _side),
        in_channels=1,
    )(he_resnet)
