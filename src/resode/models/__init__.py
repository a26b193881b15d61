"""Models by name: what `resode list models` shows and `resode.create` builds.

The name of a model is its family and its depth. The families of He et al. accept every depth 6n + 2, not only
the listed ones.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from resode.errors import InputError
from resode.gradients import Gradient, gradients
from resode.models import published
from resode.models.budget import fit_memory, set_gradient
from resode.models.dynamic import DynamicNet, dynamic
from resode.models.he import he_preact_resnet, he_resnet, units_per_stage
from resode.models.regridding import Regridding, regrid
from resode.models.resnet import DEPTHS, PREACTIVATED, cifar_preact_resnet, cifar_resnet
from resode.models.twisting import Where, chosen_convolutions
from resode.models.twisting import twist as twisted_copy
from resode.registry import Entry, Registry

__all__ = [
    "DynamicNet",
    "Regridding",
    "create",
    "fit_memory",
    "models",
    "name_and_options",
    "regrid",
    "set_gradient",
    "twist",
]

models: Registry[nn.Module] = Registry("model", "models")

CIFAR = (3, 32, 32)
_CREATED_AS = "_created_as"  # a plain attribute: copied by deepcopy, absent from the state_dict
HE_DEPTHS = (20, 32, 44, 56, 110, 1202)


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


def _family(prefix: str, factory: Callable[..., nn.Module], summary: str) -> None:
    """Register the listed depths of a family, and the family for any other depth 6n + 2."""

    def entry(name: str) -> Entry[nn.Module]:
        depth = int(name.removeprefix(prefix))
        units_per_stage(depth)  # raises on an invalid depth before anything is built
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
for _depth in PREACTIVATED:
    models.register(
        f"cifar_preact_resnet{_depth}",
        summary=f"ResNet-{_depth}, pre-activated, for small images",
        shape=CIFAR,
    )(partial(cifar_preact_resnet, _depth))
models.register("dynamic", summary="any network of dynamic blocks, with its stages written out", shape=CIFAR)(
    dynamic
)
models.register(
    "dynamicblocks", summary="the DynamicBlocks toolbox: parabolic or double, any scheme", shape=CIFAR
)(published.dynamicblocks)
models.register(
    "ruthotto_haber", summary="Ruthotto & Haber 2018: parabolic, Hamiltonian, second order", shape=CIFAR
)(published.ruthotto_haber)
models.register("chang", summary="Chang et al. 2018: Hamiltonian, midpoint, leapfrog", shape=CIFAR)(
    published.chang
)
models.register("imex_net", summary="Haber et al. 2019: semi-implicit", shape=CIFAR)(published.imex_net)
models.register(
    "pde_resnet", summary="liuyao12 2021: twisted groups, Euler sub-steps with shared weights", shape=CIFAR
)(published.pde_resnet)
models.register("neural_ode", summary="Chen et al. 2018: an adaptive solver", shape=CIFAR)(
    published.neural_ode
)


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


def _by_integrator(prefix: str, integrator: str, summary: str) -> None:
    """Register a family of pre-activation ResNets whose units are steps of an integrator."""

    def entry(name: str) -> Entry[nn.Module]:
        depth = int(name.removeprefix(prefix))
        units_per_stage(depth)
        factory = partial(published.preactivation_net, depth, integrator=integrator)
        return Entry(name, factory, summary.format(depth=depth), CIFAR)

    for depth in (20, 32, 44, 56):
        listed = entry(f"{prefix}{depth}")
        models.register(listed.name, summary=listed.summary, shape=CIFAR)(listed.factory)
    models.register_family(prefix + r"\d{1,5}", entry)


_by_integrator(
    "lm_resnet", "learned_two_step", "Lu et al. 2018: LM-ResNet-{depth}, a learned two-step scheme"
)
_by_integrator("momentum_resnet", "momentum", "Sander et al. 2021: momentum ResNet-{depth}")
for _depth in published.REVNETS:
    models.register(
        f"revnet{_depth}", summary=f"Gomez et al. 2017: RevNet-{_depth}, reversible", shape=CIFAR
    )(partial(published.revnet, _depth))
for _data, _side in (("digits", 8), ("mnist", 28)):
    for _depth in (8, 14):
        models.register(
            f"{_data}_resnet{_depth}",
            summary=f"He's ResNet-{_depth} for grey {_side}x{_side} images",
            shape=(1, _side, _side),
        )(partial(he_resnet, _depth, in_channels=1))
