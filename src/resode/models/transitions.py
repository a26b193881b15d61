"""Transitions: stem, connectors and head, the layers before, between and after the dynamic blocks.

    stem         x -> s(N(K x)): images to the first state
    connector    y -> pool(s(N(K y))): one width and resolution to the next (Ruthotto & Haber 2018)
    unit         y <- S y + K2 s(N2 K1 s(N1 y)) with stride 2: an ordinary residual unit (He et al. 2016b), or
                 another kind of unit (`resode.models.units`)
    sequence     several of these, one after the other
    activation   y -> s(N y), and N1 K of that with stride 2 (liuyao12's PDE blocks)
    head         y -> W mean(s(N y)) + b: the last state to logits

Each is a frozen specification whose `build` makes the module for given widths. The convolutions K of stem,
connector and unit can be twisted.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resode.errors import InputError, nearest
from resode.fields.activations import activation as activation_of
from resode.fields.norms import Norm, NormOption, norm_of
from resode.fields.twists import TwistOption, twist_of
from resode.models.layouts import UnitSpec, size_mistakes
from resode.models.units import (
    ActivatedUnit,
    BasicUnit,
    BottleneckUnit,
    Convolution,
    PreactivationUnit,
    Shortcut,
    Unit,
    shortcut_a,
    shortcut_b,
    shortcut_preactivated,
)
from resode.operators.twist import TwistConv2d
from resode.registry import Registry, instance


class Transition(ABC):
    """Specification of a connector; every concrete one is a frozen dataclass."""

    @abstractmethod
    def build(self, inputs: int, outputs: int, last: bool = False) -> nn.Module:
        """The module (N, inputs, H, W) -> (N, outputs, size(H), size(W)); H x W if it is the last.

        Raises:
            InputError: widths that it cannot join.
        """

    @abstractmethod
    def size(self, side: int) -> int:
        """The side of the output image, from that of the input."""

    def to_data(self) -> str | dict[str, Any]:
        """Plain data from which `connectors.of` makes the same connector."""
        return connectors.describe(self)


connectors: Registry[Transition] = Registry("connector", "")


class Layer(nn.Module):
    """s(N(K y)), (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        norm: Norm | None,
        activation: str | None,
        bias: bool,
        stride: int = 1,
        twist: TwistOption = None,
    ) -> None:
        super().__init__()
        self.conv = _twisted(Convolution(inputs, outputs, kernel, stride), twist)
        if bias:
            self.conv.bias = nn.Parameter(self.conv.weight.new_zeros(outputs))
        self.norm = nn.Identity() if norm is None else norm.build(outputs)
        self.activation = activation_of(activation or "identity").function

    def forward(self, y: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(y)))


class Pooled(Layer):
    """A layer, then the mean over 2x2 pixels (an odd last row or column is dropped)."""

    def forward(self, y: Tensor) -> Tensor:
        y = super().forward(y)
        return F.avg_pool2d(y, (min(2, y.shape[2]), min(2, y.shape[3])))


def _twisted(convolution: nn.Module, twist: TwistOption) -> nn.Conv2d:
    """The convolution, or its twisted form if a twist is given."""
    assert isinstance(convolution, nn.Conv2d)
    twist = twist_of(twist)
    return convolution if twist is None else TwistConv2d.of(convolution, **asdict(twist))


def _validate(value: Any, kernels: tuple[int, ...] = ()) -> None:
    """Replace the names of norm and twist by their specifications; raise `InputError` for invalid options."""
    object.__setattr__(value, "norm", norm_of(value.norm))
    if kernels:
        object.__setattr__(value, "twist", twist_of(value.twist))
    if value.activation is not None:
        activation_of(value.activation)
    bias = getattr(value, "bias", False)
    if not isinstance(bias, bool):
        raise InputError(f"{value.what}: bias {bias!r}; true or false is needed")
    if kernels and (type(value.kernel) is not int or value.kernel not in kernels):
        sizes = " or ".join(map(str, kernels))
        raise InputError(f"{value.what}: kernel {value.kernel!r}; {sizes} is needed")


@dataclass(frozen=True)
class Stem:
    """x -> s(N(K x)).

    Args:
        in_channels: the channels of an image.
        kernel: size of K: 1, 3, 5 or 7.
        norm: N, or None.
        activation: s, or None.
        bias: whether K has a bias.
        twist: of K, as for a field; or None.
    """

    in_channels: int = 3
    kernel: int = 3
    norm: NormOption = "batch"
    activation: str | None = "relu"
    bias: bool = False
    twist: TwistOption = None
    what = "stem"

    def __post_init__(self) -> None:
        _validate(self, (1, 3, 5, 7))

    def build(self, width: int) -> nn.Module:
        """The module (N, in_channels, H, W) -> (N, width, H, W)."""
        assert self.norm is None or isinstance(self.norm, Norm)
        options = (self.kernel, self.norm, self.activation, self.bias)
        return Layer(self.in_channels, width, *options, twist=self.twist)


@connectors.register("layer", summary="convolution, norm, activation, then average pooling or a stride")
@dataclass(frozen=True)
class Connector(Transition):
    """y -> pool(s(N(K y))).

    Args:
        kernel: size of K: 1 or 3.
        norm: N, or None.
        activation: s, or None.
        bias: whether K has a bias.
        pool: average (2x2, after the activation), stride (of K), or none.
        twist: of K, as for a field; or None.
    """

    kernel: int = 1
    norm: NormOption = "batch"
    activation: str | None = "relu"
    bias: bool = False
    pool: Literal["average", "stride", "none"] = "average"
    twist: TwistOption = None
    what = "connector"

    def __post_init__(self) -> None:
        _validate(self, (1, 3))
        pools = ("average", "stride", "none")
        if self.pool not in pools:
            raise InputError(f"unknown pool '{self.pool}'{nearest(self.pool, pools)} ({', '.join(pools)})")

    def build(self, inputs: int, outputs: int, last: bool = False) -> nn.Module:
        assert self.norm is None or isinstance(self.norm, Norm)
        kind = Pooled if self.pool == "average" and not last else Layer
        stride = 2 if self.pool == "stride" and not last else 1
        options = (self.kernel, self.norm, self.activation, self.bias)
        return kind(inputs, outputs, *options, stride, self.twist)

    def size(self, side: int) -> int:
        return {"average": max(1, side // 2), "stride": (side + 1) // 2, "none": side}[self.pool]


KINDS: dict[str, type[Unit]] = {
    "preactivation": PreactivationUnit,
    "basic": BasicUnit,
    "bottleneck": BottleneckUnit,
    "activated": ActivatedUnit,
}
_SHORTCUTS: dict[str, Shortcut] = {
    "A": shortcut_a,
    "B": shortcut_b,
    "preactivated": shortcut_preactivated,
}


@connectors.register("unit", summary="an ordinary residual unit of stride 2, pre-activated by default")
@dataclass(frozen=True)
class UnitConnector(Transition):
    """S y + K2 relu(N2 K1 relu(N1 y)): the first unit of a stage in a pre-activation ResNet.

    Args:
        shortcut: A subsamples and pads with zeros; B is a 1x1 convolution with its norm; preactivated is
            norm, ReLU and a 1x1 convolution.
        twist: of the 3x3 convolutions, as for a field; or None.
        kind: preactivation, or another unit of `resode.models.units`: basic, bottleneck, activated.
        widens: the convolution that strides and widens, first or last. In a bottleneck K2 strides, and a
            quarter of the outputs is its width.
        stride: 2, or 1 to keep the size of the image.
    """

    shortcut: Literal["A", "B", "preactivated"] = "A"
    twist: TwistOption = None
    kind: Literal["preactivation", "basic", "bottleneck", "activated"] = "preactivation"
    widens: Literal["first", "last"] = "first"
    stride: int = 2
    what = "connector"

    def __post_init__(self) -> None:
        object.__setattr__(self, "twist", twist_of(self.twist))
        if self.shortcut not in tuple(_SHORTCUTS):
            raise InputError(f"unknown shortcut '{self.shortcut}': use {', '.join(_SHORTCUTS)}")
        if self.kind not in tuple(KINDS):
            near = nearest(str(self.kind), KINDS)
            raise InputError(f"unknown kind of unit '{self.kind}'{near} ({', '.join(KINDS)})")
        if self.widens not in ("first", "last"):
            raise InputError(f"connector: widens {self.widens!r}; first or last is needed")
        if type(self.stride) is not int or self.stride not in (1, 2):
            raise InputError(f"connector: stride {self.stride!r}; 1 or 2 is needed")

    def build(self, inputs: int, outputs: int, last: bool = False) -> nn.Module:
        if self.shortcut == "A" and inputs > outputs:
            raise InputError(f"shortcut A cannot drop channels ({inputs} to {outputs}); use shortcut B")
        spec = self._spec(inputs, outputs, 1 if last else self.stride)
        unit = KINDS[self.kind](spec, _SHORTCUTS[self.shortcut])
        for name in ("conv2",) if self.kind == "bottleneck" else ("conv1", "conv2"):
            setattr(unit, name, _twisted(unit.get_submodule(name), self.twist))
        return unit

    def _spec(self, inputs: int, outputs: int, stride: int) -> UnitSpec:
        if self.kind == "bottleneck":
            if outputs % 4:
                raise InputError(f"a bottleneck has a multiple of 4 channels, not {outputs}")
            return UnitSpec(inputs, outputs // 4, outputs, (1, stride))
        if self.widens == "last":
            return UnitSpec(inputs, inputs, outputs, (1, stride))
        return UnitSpec(inputs, outputs, outputs, (stride, 1))

    def size(self, side: int) -> int:
        return (side - 1) // self.stride + 1


@connectors.register("sequence", summary="several connectors, one after the other")
@dataclass(frozen=True)
class Successive(Transition):
    """y -> c_n( ... c_1(y)), each as it is between two stages (none is the last).

    Args:
        parts: the connectors, as objects, names or mappings.
        widths: the channels between them, one fewer.
    """

    parts: tuple[Transition, ...]
    widths: tuple[int, ...] = ()
    what = "connector"

    def __post_init__(self) -> None:
        for name in ("parts", "widths"):
            value = getattr(self, name)
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise InputError(f"sequence: {name} is a list, not {value!r}")
        object.__setattr__(self, "parts", tuple(connector_of(part) for part in self.parts))
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.parts or len(self.widths) != len(self.parts) - 1:
            raise InputError(
                f"sequence: {len(self.parts)} connectors and {len(self.widths)} widths; one width is needed "
                "between each two"
            )
        if mistakes := size_mistakes(self.widths, len(self.widths)):
            raise InputError(*mistakes)

    def build(self, inputs: int, outputs: int, last: bool = False) -> nn.Module:
        pairs = pairwise((inputs, *self.widths, outputs))
        return nn.Sequential(
            *(part.build(before, after) for part, (before, after) in zip(self.parts, pairs, strict=True))
        )

    def size(self, side: int) -> int:
        for part in self.parts:
            side = part.size(side)
        return side


def connector_of(value: Any) -> Transition:
    """A connector from its specification or plain data."""
    expected = f"a name or a mapping with a name ({', '.join(connectors.names())})"
    connector: Transition = instance(connectors.of(value), Transition, "connector", expected)
    return connector


@connectors.register("activation", summary="norm and activation, and with a stride of 2 a 1x1 convolution")
@dataclass(frozen=True)
class ActivationConnector(Transition):
    """y -> s(N y) between steps at one resolution; with stride 2, y -> N1 K s(N y) with K of size 1x1.

    Args:
        norm: N and N1, or None.
        activation: s.
        stride: 1 or 2.
        border: pixels of zeros around the image before K. (The published PDE blocks have 1: an image of 32
            becomes one of 17.)
    """

    norm: NormOption = "batch"
    activation: str | None = "relu"
    stride: Literal[1, 2] = 1
    border: int = 0
    what = "connector"

    def __post_init__(self) -> None:
        _validate(self)
        if self.stride not in (1, 2):
            raise InputError(f"connector: stride {self.stride!r}; 1 or 2 is needed")
        if type(self.border) is not int or self.border < 0 or (self.border and self.stride == 1):
            raise InputError(
                f"connector: border {self.border!r}; a number of pixels is needed, and 0 with stride 1"
            )

    def build(self, inputs: int, outputs: int, last: bool = False) -> nn.Module:
        assert self.norm is None or isinstance(self.norm, Norm)
        if self.stride == 1 and inputs != outputs:
            raise InputError(
                f"an activation connector of stride 1 cannot change {inputs} channels to {outputs}; take "
                "stride 2"
            )
        return ActivatedStep(self, self.norm, inputs, outputs)

    def size(self, side: int) -> int:
        return (side + 2 * self.border + self.stride - 1) // self.stride


class ActivatedStep(nn.Module):
    """s(N y), or N1 K s(N y): (N, inputs, H, W) -> (N, outputs, size(H), size(W))."""

    def __init__(self, connector: ActivationConnector, norm: Norm | None, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm.build(inputs)
        self.activation = activation_of(connector.activation or "identity").function
        self.widening: nn.Module = nn.Identity()
        if connector.stride == 2:
            convolution = Convolution(inputs, outputs, 1, 2)
            convolution.padding = (connector.border, connector.border)
            self.widening = nn.Sequential(convolution, nn.Identity() if norm is None else norm.build(outputs))

    def forward(self, y: Tensor) -> Tensor:
        z: Tensor = self.widening(self.activation(self.norm(y)))
        return z


@connectors.register("identity", summary="the identity, between two blocks of equal width and resolution")
@dataclass(frozen=True)
class Identity(Transition):
    """y -> y, between two blocks of equal width and resolution."""

    what = "connector"

    def build(self, inputs: int, outputs: int, last: bool = False) -> nn.Module:
        if inputs != outputs:
            raise InputError(f"an identity connector cannot change {inputs} channels to {outputs}")
        return nn.Identity()

    def size(self, side: int) -> int:
        return side


@dataclass(frozen=True)
class Head:
    """y -> W mean(s(N y)) + b, the mean over all pixels.

    Args:
        norm: N, or None.
        activation: s, or None.
    """

    norm: NormOption = None
    activation: str | None = None
    what = "head"

    def __post_init__(self) -> None:
        _validate(self)

    def build(self, width: int, classes: int) -> nn.Module:
        """The module (N, width, H, W) -> (N, classes)."""
        assert self.norm is None or isinstance(self.norm, Norm)
        return Classifier(width, classes, self.norm, self.activation)


class Classifier(nn.Module):
    """W mean(s(N y)) + b, the mean over all pixels."""

    def __init__(self, width: int, classes: int, norm: Norm | None, activation: str | None) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm.build(width)
        self.activation = activation_of(activation or "identity").function
        self.linear = nn.Linear(width, classes)

    def forward(self, y: Tensor) -> Tensor:
        y = self.activation(self.norm(y))
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits


def to_data(value: Stem | Head) -> dict[str, Any]:
    """The options of a stem or a head that differ from the defaults, as plain data."""
    defaults = type(value)()
    data = {}
    for name in asdict(value):
        content = getattr(value, name)
        if content != getattr(defaults, name):
            data[name] = content.to_data() if hasattr(content, "to_data") else content
    return data
