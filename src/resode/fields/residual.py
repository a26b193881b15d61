"""The branches of residual networks, as right-hand sides.

    preactivation   K2 s(N2 K1 s(N1 y))              arXiv:1603.05027; with Euler and h = 1 this is ResNet-v2
    double          s(N2 K2 s(N1 K1 y))              arXiv:1512.03385, the basic block without its sum
    preact_double   N2 K2 s(N1 K1 s(y))              the DynamicBlocks toolbox, its PreactDoubleLayer
    single          s(N K y)                         one layer; by default K y, a linear equation
    bottleneck      K3 s(N3 K2 s(N2 K1 s(N1 y)))     arXiv:1603.05027; K1 and K3 of size 1x1
    triple          s(N3 K3 s(N2 K2 s(N1 K1 y)))     arXiv:1512.03385, the bottleneck block without its sum
    activated       u - y + K2 s(N2 K1 u)            u = s(N1 y): a pre-activation unit whose shortcut takes u

Their kernels are not tied: the Jacobian can have any spectrum, and no step is stable for all of them.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from resode.errors import InputError
from resode.fields.activations import Activation, activation
from resode.fields.catalogue import fields
from resode.fields.convolutions import Convolution, ConvolutionalField
from resode.fields.norms import NormOption


@fields.register("preactivation", summary="K2 s(N2 K1 s(N1 y)): the branch of ResNet-v2")
@dataclass(frozen=True)
class Preactivation(ConvolutionalField):
    """f(y) = K2 s(N2(K1 s(N1(y)) + b1)) + b2 (He et al. 2016b, arXiv:1603.05027).

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of both convolutions.
        boundary: "zero" or "periodic".
        bias: learn b1 and b2.
        first_norm: if false, K1 is applied to y itself, as in the first unit of a RevNet (arXiv:1707.04585),
            whose stem already normalises and activates.
    """

    norm: NormOption = "batch"
    first_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_bool("first_norm")

    def build(self, width: int) -> nn.Module:
        return PreactivationLayer(self, width)

    @property
    def equation(self) -> str:
        inner = f"K1 {self.written('y', 'N1', '')}" if self.first_norm else "K1 y"
        return self.with_legend(f"K2 {self.written(inner, 'N2', 'b1')}{' + b2' * self.bias}", "K1, K2")


class PreactivationLayer(nn.Module):
    """K2 s(N2 K1 s(N1 y)), (N, C, H, W) -> (N, C, H, W); without a first norm K2 s(N2 K1 y)."""

    def __init__(self, field: Preactivation, width: int) -> None:
        super().__init__()
        self.first: Activation = activation(field.activation if field.first_norm else "identity")
        self.second: Activation = activation(field.activation)
        self.norm1 = field.normalisation(width) if field.first_norm else nn.Identity()
        self.conv1 = field.convolution(width, width)
        self.norm2 = field.normalisation(width)
        self.conv2 = field.convolution(width, width)

    def forward(self, y: Tensor) -> Tensor:
        f = self.conv1(self.first(self.norm1(y)))
        z: Tensor = self.conv2(self.second(self.norm2(f)))
        return z


@fields.register("double", summary="s(N2 K2 s(N1 K1 y)): the basic residual block without its sum")
@dataclass(frozen=True)
class Double(ConvolutionalField):
    """f(y) = s(N2(K2 s(N1(K1 y + b1)) + b2)), the basic residual block without its sum (arXiv:1512.03385).

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of both convolutions.
        boundary: "zero" or "periodic".
        bias: learn b1 and b2.
        final_activation: if false, f(y) = N2(K2 s(N1(K1 y + b1)) + b2), which takes both signs.
    """

    norm: NormOption = "batch"
    final_activation: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_bool("final_activation")

    def build(self, width: int) -> nn.Module:
        return DoubleLayer(self, width)

    @property
    def equation(self) -> str:
        outer = self.written if self.final_activation else self.normed
        return self.with_legend(outer(f"K2 {self.written('K1 y', 'N1', 'b1')}", "N2", "b2"), "K1, K2")

    def remark(self) -> str | None:
        return _only_grows(self.activation, "final_activation=false") if self.final_activation else None


class DoubleLayer(nn.Module):
    """s(N2 K2 s(N1 K1 y)), (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, field: Double, width: int) -> None:
        super().__init__()
        self.first: Activation = activation(field.activation)
        self.second: Activation = activation(field.activation if field.final_activation else "identity")
        self.conv1 = field.convolution(width, width)
        self.norm1 = field.normalisation(width)
        self.conv2 = field.convolution(width, width)
        self.norm2 = field.normalisation(width)

    def forward(self, y: Tensor) -> Tensor:
        f = self.first(self.norm1(self.conv1(y)))
        return self.second(self.norm2(self.conv2(f)))


@fields.register("preact_double", summary="N2 K2 s(N1 K1 s(y)): activations first, a norm after each K")
@dataclass(frozen=True)
class PreactDouble(ConvolutionalField):
    """f(y) = N2(K2 s(N1(K1 s(y) + b1)) + b2), the PreactDoubleLayer of the DynamicBlocks toolbox.

    `Double` with each activation before its convolution instead of after the norm: f takes both signs.

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of both convolutions.
        boundary: "zero" or "periodic".
        bias: learn b1 and b2.

    Example:
        >>> PreactDouble(norm=None, bias=True).equation
        'K2 relu(K1 relu(y) + b1) + b2'
    """

    norm: NormOption = "batch"

    def build(self, width: int) -> nn.Module:
        return PreactDoubleLayer(self, width)

    @property
    def equation(self) -> str:
        inner = self.written(f"K1 {self.activation}(y)", "N1", "b1")
        return self.with_legend(self.normed(f"K2 {inner}", "N2", "b2"), "K1, K2")


class PreactDoubleLayer(nn.Module):
    """N2 K2 s(N1 K1 s(y)), (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, field: PreactDouble, width: int) -> None:
        super().__init__()
        self.activation: Activation = activation(field.activation)
        self.conv1 = field.convolution(width, width)
        self.norm1 = field.normalisation(width)
        self.conv2 = field.convolution(width, width)
        self.norm2 = field.normalisation(width)

    def forward(self, y: Tensor) -> Tensor:
        f = self.activation(self.norm1(self.conv1(self.activation(y))))
        z: Tensor = self.norm2(self.conv2(f))
        return z


@fields.register("single", summary="s(N(K y + b)): one layer, by default the linear K y")
@dataclass(frozen=True)
class Single(ConvolutionalField):
    """f(y) = s(N(K y + b)); by default f(y) = K y, the equation of the PDE blocks of liuyao12.

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of K.
        boundary: "zero" or "periodic".
        bias: learn b.
    """

    activation: str = "identity"

    def build(self, width: int) -> nn.Module:
        return SingleLayer(self, width)

    @property
    def equation(self) -> str:
        layer = self.normed("K y") if self.activation == "identity" else self.written("K y")
        return self.with_legend(layer)

    def remark(self) -> str | None:
        return _only_grows(self.activation, "activation=identity")


class SingleLayer(nn.Module):
    """s(N(K y)), (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, field: Single, width: int) -> None:
        super().__init__()
        self.activation: Activation = activation(field.activation)
        self.conv = field.convolution(width, width)
        self.norm = field.normalisation(width)

    def forward(self, y: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(y)))


def _only_grows(name: str, fix: str) -> str | None:
    """The remark on a field that ends with an activation without negative values."""
    if not activation(name).positive:
        return None
    return f"a field that ends with {name} is never negative, so the state can only grow; {fix} avoids that"


@fields.register("bottleneck", summary="K3 s(N3 K2 s(N2 K1 s(N1 y))): K1 and K3 of size 1x1")
@dataclass(frozen=True)
class Bottleneck(ConvolutionalField):
    """f(y) = K3 s(N3(K2 s(N2(K1 s(N1(y)) + b1)) + b2)) + b3, K1 and K3 of size 1x1 (arXiv:1603.05027).

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of the 3x3 convolution K2; the 1x1 convolutions mix all channels (ResNeXt,
            arXiv:1611.05431).
        boundary: "zero" or "periodic".
        bias: learn b1, b2 and b3.
        ratio: K2 acts on width / ratio channels.
    """

    norm: NormOption = "batch"
    ratio: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ratio(self)

    def build(self, width: int) -> nn.Module:
        return BottleneckLayer(self, width, _divided(self, width))

    @property
    def equation(self) -> str:
        inner = self.written(f"K1 {self.written('y', 'N1', '')}", "N2", "b1")
        return self.with_legend(f"K3 {self.written(f'K2 {inner}', 'N3', 'b2')}{' + b3' * self.bias}", "K2")


class BottleneckLayer(nn.Module):
    """K3 s(N3 K2 s(N2 K1 s(N1 y))), (N, C, H, W) -> (N, C, H, W) through `middle` channels."""

    def __init__(self, field: Bottleneck, width: int, middle: int) -> None:
        super().__init__()
        self.activation: Activation = activation(field.activation)
        self.norm1 = field.normalisation(width)
        self.conv1 = Convolution(width, middle, 1, bias=field.bias)
        self.norm2 = field.normalisation(middle)
        self.conv2 = field.convolution(middle, middle)
        self.norm3 = field.normalisation(middle)
        self.conv3 = Convolution(middle, width, 1, bias=field.bias)

    def forward(self, y: Tensor) -> Tensor:
        f = self.conv1(self.activation(self.norm1(y)))
        f = self.conv2(self.activation(self.norm2(f)))
        z: Tensor = self.conv3(self.activation(self.norm3(f)))
        return z


@fields.register("triple", summary="s(N3 K3 s(N2 K2 s(N1 K1 y))): the bottleneck block without its sum")
@dataclass(frozen=True)
class Triple(ConvolutionalField):
    """f(y) = s(N3(K3 s(N2(K2 s(N1(K1 y + b1)) + b2)) + b3)), K1 and K3 of size 1x1 (arXiv:1512.03385).

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of the 3x3 convolution K2.
        boundary: "zero" or "periodic".
        bias: learn b1, b2 and b3.
        ratio: K2 acts on width / ratio channels.
        final_activation: if false, f(y) = N3(K3 ...), which takes both signs.
    """

    norm: NormOption = "batch"
    ratio: int = 4
    final_activation: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_bool("final_activation")
        _check_ratio(self)

    def build(self, width: int) -> nn.Module:
        return TripleLayer(self, width, _divided(self, width))

    @property
    def equation(self) -> str:
        outer = self.written if self.final_activation else self.normed
        inner = self.written(f"K2 {self.written('K1 y', 'N1', 'b1')}", "N2", "b2")
        return self.with_legend(outer(f"K3 {inner}", "N3", "b3"), "K2")

    def remark(self) -> str | None:
        return _only_grows(self.activation, "final_activation=false") if self.final_activation else None


class TripleLayer(nn.Module):
    """s(N3 K3 s(N2 K2 s(N1 K1 y))), (N, C, H, W) -> (N, C, H, W) through `middle` channels."""

    def __init__(self, field: Triple, width: int, middle: int) -> None:
        super().__init__()
        self.inner: Activation = activation(field.activation)
        self.outer: Activation = activation(field.activation if field.final_activation else "identity")
        self.conv1 = Convolution(width, middle, 1, bias=field.bias)
        self.norm1 = field.normalisation(middle)
        self.conv2 = field.convolution(middle, middle)
        self.norm2 = field.normalisation(middle)
        self.conv3 = Convolution(middle, width, 1, bias=field.bias)
        self.norm3 = field.normalisation(width)

    def forward(self, y: Tensor) -> Tensor:
        f = self.inner(self.norm1(self.conv1(y)))
        f = self.inner(self.norm2(self.conv2(f)))
        return self.outer(self.norm3(self.conv3(f)))


@fields.register("activated", summary="u - y + K2 s(N2 K1 u), u = s(N1 y): relaxation to the activated state")
@dataclass(frozen=True)
class Activated(ConvolutionalField):
    """f(y) = u - y + K2 s(N2(K1 u + b1)) + b2, u = s(N1(y)).

    With Euler and h = 1 it is the pre-activation unit whose shortcut takes u instead of y, as in the
    published ResNets with a twist (`resode.models.units.ActivatedUnit`): the state relaxes towards u.

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of both convolutions.
        boundary: "zero" or "periodic".
        bias: learn b1 and b2.
    """

    norm: NormOption = "batch"

    def build(self, width: int) -> nn.Module:
        return ActivatedLayer(self, width)

    @property
    def equation(self) -> str:
        kernel = f"K2 {self.written('K1 u', 'N2', 'b1')}{' + b2' * self.bias}"
        return self.with_legend(f"u - y + {kernel}, u = {self.written('y', 'N1', '')}", "K1, K2")


class ActivatedLayer(nn.Module):
    """u - y + K2 s(N2 K1 u) with u = s(N1 y), (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, field: Activated, width: int) -> None:
        super().__init__()
        self.activation: Activation = activation(field.activation)
        self.norm1 = field.normalisation(width)
        self.conv1 = field.convolution(width, width)
        self.norm2 = field.normalisation(width)
        self.conv2 = field.convolution(width, width)

    def forward(self, y: Tensor) -> Tensor:
        u = self.activation(self.norm1(y))
        f: Tensor = self.conv2(self.activation(self.norm2(self.conv1(u))))
        return f + u - y


def _check_ratio(field: Bottleneck | Triple) -> None:
    if type(field.ratio) is not int or field.ratio < 1:
        raise InputError(f"{field.name}: ratio {field.ratio!r}; a positive integer is needed")


def _divided(field: Bottleneck | Triple, width: int) -> int:
    """The channels of the 3x3 convolution."""
    if width % field.ratio:
        raise InputError(
            f"{field.name}: ratio {field.ratio} does not divide {width} channels; take a divisor"
        )
    return width // field.ratio
