"""Lifting: a trained ResNet as a network of dynamic blocks with the same logits.

    y <- y + F_k(y)          a unit without a last relu: an Euler step, h = 1
    y <- relu(y + F_k(y))    one with it: a step of projected Euler

Units of one width in a row become a block with f(theta(t), y) = F_k(y) for k <= t < k + 1: controls that are
piecewise constant, one node and one set of running statistics for each unit. Units that change the width or
the size of the image become the connectors. The ResNets of resode get fields, schemes and connectors with
names, so that a file can hold them; any other network keeps what is not in a block (`LiftedNet`).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from resode.abstract import dtype_of
from resode.errors import InputError
from resode.fields import Activated, BatchNorm, ConvolutionalField, Double, Preactivation, Triple, Twist
from resode.fields.batch_norm import BatchNorm2d
from resode.gradients import Checkpointed, Gradient, Stored
from resode.grids import TimeGrid
from resode.inputs import Shape
from resode.integrators import Euler, FixedStep, ProjectedEuler
from resode.mode import mode
from resode.models.dynamic import DynamicNet
from resode.models.he import HePreactResNet, HeResNet
from resode.models.lifted import lifted_in_place, logits_of
from resode.models.regridding import estimate_on, fitting
from resode.models.resnet import ResNet
from resode.models.transitions import Head, Stem, Successive, Transition, UnitConnector
from resode.models.units import (
    ActivatedUnit,
    BasicUnit,
    BottleneckUnit,
    Convolution,
    PreactivationUnit,
    Subsample,
)
from resode.operators.twist import TwistConv2d
from resode.stages import Stage

CHECKED = 1e-4  # of the largest logit: rounding in float32 leaves less, another network more
SIDES = (32, 64, 224)  # of the images that the logits are compared on


@dataclass(frozen=True)
class Lifting:
    """A lifted network, and where each of its tensors comes from.

    Args:
        module: the network of dynamic blocks, in evaluation mode.
        sources: for each name of its `state_dict`, the name of the old tensor, which is the same bit for bit.
        difference: of the logits of random images, at most, relative to the largest logit.
    """

    module: DynamicNet
    sources: Mapping[str, str]
    difference: float = 0.0

    def __repr__(self) -> str:
        return f"Lifting({len(self.sources)} tensors, logits within {self.difference:.2g})"

    def transfer(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map tensors by old parameter names (an optimizer's momentum, say) to the new names."""
        return {new: tensors[old].clone() for new, old in self.sources.items() if old in tensors}


def lift(
    net: nn.Module,
    *,
    controls: int | None = None,
    interpolation: str = "linear",
    images: Tensor | None = None,
) -> DynamicNet:
    """A copy of a ResNet as a network of dynamic blocks, which gives the same logits within rounding.

    Each chain of units that keep the width is a block: a pre-activation unit is an Euler step, one that ends
    with a relu a step of projected Euler, both with h = 1 and controls that are constant on each step.
    Everything for networks of dynamic blocks then applies: `regrid`, other schemes, `trajectory`, ...

    Args:
        net: a ResNet of resode (made by `create`, loaded or imported), or any network whose residual blocks
            are children of an `nn.Sequential` or `nn.ModuleList`; unchanged.
        controls: so many controls for each block, the nearest to the units' weights by least squares; the
            logits then differ (default: one for each unit).
        interpolation: of these controls: linear, constant, quadratic or cubic.
        images: inputs (N, C, H, W) on which running statistics are then estimated anew, as for `regrid`
            (default: those of the units).

    Returns:
        The network in evaluation mode. A ResNet of resode can be saved; any other network stays in Python.

    Raises:
        InputError: no unit keeps the width, units share weights or do what no step of a scheme is; the
            message names the unit.

    Example:
        >>> net = lift(resode.create("he_resnet20"))
        >>> [block.stage.states.steps for block in net.blocks()]
        [3, 2, 2]
    """
    new = lifting(net).module
    if controls is None:
        return new
    fewer = fitting(new, controls, interpolation).module
    if images is not None:
        estimate_on(fewer, images)
    return fewer


def lifting(net: nn.Module) -> Lifting:
    """A lifted network, and the map of its tensors; arguments as for `lift`."""
    if not isinstance(net, nn.Module):
        raise InputError(f"lift {net!r}: a network (nn.Module) is needed; resode.load(PATH) reads one")
    if isinstance(net, DynamicNet):
        raise InputError("lift: this is a network of dynamic blocks already")
    net = getattr(net, "_orig_mod", net)  # of torch.compile
    _refuse_shared(net)
    shape, logits = _tried(net)
    reason = f"a {type(net).__name__} is no ResNet of resode"
    result: Lifting | None = None
    if isinstance(net, HeResNet | HePreactResNet | ResNet):
        try:
            result = _lifted(net)
        except _Unnamed as error:
            reason = str(error)
    if result is None:
        made, sources = lifted_in_place(net, shape, logits.shape[1], reason)
        result = Lifting(made, sources)
    new = result.module
    reference = next(net.parameters())
    new.to(dtype=reference.dtype, device=reference.device).eval()
    old = net.state_dict()
    new.load_state_dict({name: old[source] for name, source in result.sources.items()})
    trainable = {name: p.requires_grad for name, p in net.named_parameters()}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(trainable[result.sources[name]])
    if (preprocessing := getattr(net, "preprocessing", None)) is not None:  # of a network that was loaded
        new.preprocessing = preprocessing
    return replace(result, difference=_difference(net, new, shape, logits))


def lifted_options(net: nn.Module) -> dict[str, Any] | None:
    """Options with which `resode.create("dynamic", ...)` builds a lifted ResNet of resode; None for others.

    Only the structure counts: the network may be on the meta device.
    """
    if not isinstance(net, HeResNet | HePreactResNet | ResNet):
        return None
    try:
        return _lifted(net).module.options()
    except (InputError, _Unnamed):
        return None


def _refuse_shared(net: nn.Module) -> None:
    """Raise `InputError` for weights with two names: theta(t) has its own at each unit."""
    first: dict[int, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            raise InputError(
                f"lift: {name} is {other}; units with shared weights cannot be lifted: copy them"
            )


def _tried(net: nn.Module) -> tuple[Shape, Tensor]:
    """The shape of images that a network takes, found by trying, and its logits of two of them."""
    first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise InputError(f"lift: a {type(net).__name__} has no convolutions of images (nn.Conv2d)")
    problem = ""
    for side in SIDES:
        shape = (first.in_channels, side, side)
        try:
            return shape, _logits(net, shape)
        except InputError:
            raise
        except Exception as error:  # whatever the network raises for images that it does not take
            problem = problem or f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    raise InputError(
        f"lift: the {type(net).__name__} does not take images of {first.in_channels} channels and "
        f"{', '.join(map(str, SIDES))} pixels ({problem})"
    )


def _logits(net: nn.Module, shape: Shape) -> Tensor:
    """Logits of two random images, the same for every network."""
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with mode(net, training=False), torch.no_grad():
        return logits_of(net, images.to(next(net.parameters())))


def _difference(net: nn.Module, new: DynamicNet, shape: Shape, before: Tensor) -> float:
    """How much the logits differ, relative to the largest.

    Raises:
        InputError: more than rounding does; the network computes something else.
    """
    largest = float((_logits(new, shape) - before).abs().max())
    relative = largest / (float(before.abs().max()) or 1.0)
    if relative > max(CHECKED, 100 * torch.finfo(dtype_of(net)).eps):
        raise InputError(
            f"lift: the {type(net).__name__} computes something else than its units in a row: logits would "
            f"differ by {largest:.2g}"
        )
    return relative


# ------------------------------------------------------------ the ResNets of resode


class _Unnamed(Exception):
    """What keeps a ResNet of resode from having registered fields and connectors."""


@dataclass(frozen=True)
class _Kind:
    """A kind of unit: its connector, its branch as a field, its scheme, and its 3x3 convolutions."""

    connector: Any
    field: Callable[..., ConvolutionalField]
    scheme: FixedStep
    twistable: tuple[str, ...] = ("conv1", "conv2")


KINDS: Mapping[type[nn.Module], _Kind] = {
    BasicUnit: _Kind("basic", partial(Double, final_activation=False), ProjectedEuler()),
    BottleneckUnit: _Kind(
        "bottleneck", partial(Triple, final_activation=False), ProjectedEuler(), ("conv2",)
    ),
    PreactivationUnit: _Kind("preactivation", Preactivation, Euler()),
    ActivatedUnit: _Kind("activated", Activated, Euler()),
}


def _lifted(net: HeResNet | HePreactResNet | ResNet) -> Lifting:
    """The network of registered parts, with initial weights."""
    names = {module: name for name, module in net.named_modules()}
    units = net.units()
    for unit in units:
        _check_modules(unit, names)
    groups = [(keeps, list(group)) for keeps, group in groupby(units, _keeps)]
    chains = [group for keeps, group in groups if keeps]
    if not chains:
        raise InputError(f"lift: no unit of the {type(net).__name__} keeps its width and the size of images")
    sources: dict[str, str] = dict(_of_stem_and_head(net))
    for s, chain in enumerate(chains):
        sources |= dict(_of_chain(f"stages.{s}", chain, names))
    changing = [group for keeps, group in groups if not keeps]
    first = None if groups[0][0] else _channels(changing[0][0])[0]
    last = None if groups[-1][0] else _channels(changing[-1][-1])[1]
    connector = [
        _connector(group, names, last is not None and group is changing[-1]) for group in changing
    ]  # fmt: skip
    for i, (group, made) in enumerate(zip(changing, connector, strict=True)):
        sources |= dict(_of_connector(f"connectors.{i}", group, made, names))
    gradient = Checkpointed() if isinstance(net.gradient, Checkpointed) else Stored()
    new = DynamicNet(
        [_stage(chain, gradient, names) for chain in chains],
        stem=_stem(net, names),
        connector=connector,
        first=first,
        last=last,
        head=Head() if _bn(net, "bn") is None else Head(_norm([_bn(net, "bn")], names), "relu"),
        classes=net.fc.out_features,
    )
    return Lifting(new, {name: sources[name] for name in new.state_dict()})


def _keeps(unit: nn.Module) -> bool:
    """Whether a unit keeps the width and the size of images."""
    return isinstance(unit.get_submodule("downsample"), nn.Identity)


def _channels(unit: nn.Module) -> tuple[int, int]:
    """The channels of a unit's input and output."""
    convolutions = [m for name, m in unit.named_children() if name.startswith("conv")]
    return convolutions[0].in_channels, convolutions[-1].out_channels  # type: ignore[return-value]  # of any kind


def _check_modules(unit: nn.Module, names: Mapping[nn.Module, str]) -> None:
    """Raise `_Unnamed` for a unit with parts that no field or connector of resode has."""
    known = (BatchNorm2d, Convolution, TwistConv2d, nn.Identity, Subsample, nn.Sequential)
    if type(unit) not in KINDS:
        raise _Unnamed(f"{names[unit]} is a {type(unit).__name__}")
    for module in unit.modules():
        if module is not unit and type(module) not in known:
            raise _Unnamed(f"{names[module]} is a {type(module).__name__}")
        if module._forward_hooks or module._forward_pre_hooks:
            raise InputError(
                f"lift: {names[module]} has forward hooks, which would be lost: remove them first"
            )


def _stage(chain: Sequence[nn.Module], gradient: Gradient, names: Mapping[nn.Module, str]) -> Stage:
    """The stage whose steps are these units."""
    kind, (width, _) = KINDS[type(chain[0])], _channels(chain[0])
    norm = _norm([m for unit in chain for m in unit.modules() if isinstance(m, BatchNorm2d)], names)
    twist = _twist([unit.get_submodule(name) for unit in chain for name in kind.twistable], names)
    options: dict[str, Any] = {"norm": norm, "twist": twist}
    if isinstance(chain[0], BottleneckUnit):
        options["ratio"] = width // chain[0].conv1.out_channels
    return Stage(
        width,
        kind.field(**options),
        kind.scheme,
        states=TimeGrid.uniform(len(chain)),
        interpolation="constant",
        gradient=gradient,
    )


def _connector(group: Sequence[nn.Module], names: Mapping[nn.Module, str], last: bool) -> Transition:
    """The connector of units that change the width or the size of images."""
    parts = tuple(_unit_connector(unit, names) for unit in group)
    widths = tuple(_channels(unit)[1] for unit in group[:-1])
    return parts[0] if len(parts) == 1 and not last else Successive(parts, widths)


def _unit_connector(unit: nn.Module, names: Mapping[nn.Module, str]) -> UnitConnector:
    kind, (_, outputs) = KINDS[type(unit)], _channels(unit)
    twist = _twist([unit.get_submodule(name) for name in kind.twistable], names)
    norms = [m for m in unit.modules() if isinstance(m, BatchNorm2d)]
    if (norm := _norm(norms, names)).eps != BatchNorm().eps:
        raise _Unnamed(f"{names[norms[0]]} has eps {norm.eps:g}")
    conv1, conv2 = unit.get_submodule("conv1"), unit.get_submodule("conv2")
    assert isinstance(conv1, nn.Conv2d)
    assert isinstance(conv2, nn.Conv2d)
    strides = conv1.stride[0], conv2.stride[0]
    widens_last = strides[1] > 1 or (strides[0] == 1 and conv1.out_channels != outputs)
    return UnitConnector(
        "A" if isinstance(unit.get_submodule("downsample"), Subsample) else "B",
        twist,
        kind.connector,
        "last" if widens_last and kind.connector != "bottleneck" else "first",
        strides[0] * strides[1],
    )


def _stem(net: nn.Module, names: Mapping[nn.Module, str]) -> Stem:
    conv, bn = net.get_submodule("conv1"), _bn(net, "bn1")
    assert isinstance(conv, nn.Conv2d)
    twist = _twist([conv], names)
    if bn is None:
        return Stem(conv.in_channels, conv.kernel_size[0], None, None, twist=twist)
    return Stem(conv.in_channels, conv.kernel_size[0], _norm([bn], names), twist=twist)


def _bn(net: nn.Module, name: str) -> nn.Module | None:
    """A norm of the network outside its units, if it has one."""
    return dict(net.named_children()).get(name)


def _norm(norms: Sequence[nn.Module | None], names: Mapping[nn.Module, str]) -> BatchNorm:
    """The specification of norms, which have to be equal."""
    found: dict[BatchNorm, str] = {}
    for norm in norms:
        assert norm is not None
        if type(norm) is not BatchNorm2d or not norm.track_running_stats or norm.momentum is None:
            raise _Unnamed(f"{names[norm]} is no BatchNorm2d with running statistics and a momentum")
        found.setdefault(BatchNorm(norm.eps, norm.momentum), names[norm])
    if len(found) > 1:
        one, other, *_ = found.values()
        raise _Unnamed(f"{one} and {other} differ in eps or momentum")
    return next(iter(found))


def _twist(convolutions: Sequence[nn.Module], names: Mapping[nn.Module, str]) -> Twist | None:
    """The twist of convolutions, all of which have the same one or none."""
    found: dict[Twist | None, str] = {}
    for conv in convolutions:
        twist = None
        if isinstance(conv, TwistConv2d):
            twist = Twist(conv.tie, conv.degree, conv.coordinates, conv.form)
        found.setdefault(twist, names[conv])
    if len(found) > 1:
        (twist, one), (twist2, other), *_ = found.items()
        kinds = [f"{n} ({'plain' if t is None else t.tie})" for t, n in ((twist, one), (twist2, other))]
        raise _Unnamed(f"{' and '.join(kinds)} are twisted differently, and a block is twisted as a whole")
    return next(iter(found))


def _of_stem_and_head(net: nn.Module) -> Iterator[tuple[str, str]]:
    """The new and the old name of each tensor of stem and head."""
    places = (("conv1", "stem.conv"), ("bn1", "stem.norm"), ("bn", "head.norm"), ("fc", "head.linear"))
    for old, new in places:
        module = dict(net.named_children()).get(old)
        for name in module.state_dict() if module is not None else ():
            yield f"{new}.{name}", f"{old}.{name}"


def _of_chain(
    block: str, chain: Sequence[nn.Module], names: Mapping[nn.Module, str]
) -> Iterator[tuple[str, str]]:
    """The same of a block: parameters belong to a control node, statistics to an evaluation."""
    for j, unit in enumerate(chain):
        parameters = dict(unit.named_parameters())
        for name in unit.state_dict():
            part = "controls" if name in parameters else "statistics"
            yield f"{block}.{part}.{j}.{re.sub(r'^bn', 'norm', name)}", f"{names[unit]}.{name}"


def _of_connector(
    connector: str, group: Sequence[nn.Module], made: Transition, names: Mapping[nn.Module, str]
) -> Iterator[tuple[str, str]]:
    for i, unit in enumerate(group):
        prefix = f"{connector}.{i}" if isinstance(made, Successive) else connector
        for name in unit.state_dict():
            yield f"{prefix}.{name}", f"{names[unit]}.{name}"
