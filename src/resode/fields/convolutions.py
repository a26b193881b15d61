"""The convolution K of the fields, its exact adjoint K^T, and the options that they share.

    (K y)_o(p) = sum_{c, d} W[o, c, d] y_c(p + d) + b_o,      d in {-1, 0, 1}^2,
    (K^T z)_c(p) = sum_{o, d} W[o, c, d] z_o(p - d),          <K y, z> = <y, K^T z> for b = 0.

The boundary is part of the operator: "zero" takes y = 0 outside the image, "periodic" joins its opposite
edges. A 3x3 kernel is a differential operator of order at most 2 along each axis. Twisted, K depends on the
place; its adjoint takes the coordinates first:

    K y = W * y + b + sum_pq X^p Y^q (W_pq * y),        K^T z = W^T z + sum_pq W_pq^T (X^p Y^q z).
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resode.errors import InputError
from resode.fields.activations import activation
from resode.fields.base import Field
from resode.fields.norms import NormOption, norm_of
from resode.fields.twists import Twist, TwistOption, twist_of
from resode.operators.spectra import check_boundary, norm_bound
from resode.operators.twist import PaddingMode, TwistConv2d, coordinates
from resode.operators.weighted import weighted_convolution


class Convolution(nn.Module):
    """K: (N, inputs, H, W) -> (N, outputs, H, W) for any H, W >= 1, and its adjoint.

    Initial weights are normal with variance v / (kernel^2 outputs / groups); biases are zero. With v = 2 the
    gradients keep their variance (He et al. 2015, arXiv:1502.01852, equation 14); ||K||^2 is about 4 v (the
    norm of a Gaussian symbol), so that a field whose stability depends on it takes a smaller v.

    Args:
        inputs: channels of y.
        outputs: channels of K y.
        kernel: 3, or 1 for a mixing of channels alone.
        bias: whether b is learned, or is zero and not stored.
        groups: in how many groups the channels are convolved.
        boundary: "zero" or "periodic".
        variance: v.

    Raises:
        InputError: groups that do not divide the channels, an unknown boundary.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        bias: bool = False,
        groups: int = 1,
        boundary: str = "zero",
        variance: float = 2.0,
    ) -> None:
        super().__init__()
        _check(inputs, outputs, groups, boundary)
        self.groups = groups
        self.boundary = boundary
        self.variance = variance
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; on the meta device, which holds none, do nothing."""
        _draw(self.weight, self.bias, self.groups, self.variance)

    def forward(self, y: Tensor) -> Tensor:
        return convolve(y, self.weight, self.bias, self.boundary, self.groups)

    def adjoint(self, z: Tensor) -> Tensor:
        """K^T z, with the same weights: (N, outputs, H, W) -> (N, inputs, H, W)."""
        return convolve(z, transposed(self.weight, self.groups), None, self.boundary, self.groups)

    def minus_adjoint(self, z: Tensor, bias: Tensor | None) -> Tensor:
        """-(K^T z + bias): (N, outputs, H, W) -> (N, inputs, H, W)."""
        bias = None if bias is None else -bias
        return convolve(z, -transposed(self.weight, self.groups), bias, self.boundary, self.groups)

    def antisymmetric(self, y: Tensor, gamma: float) -> Tensor:
        """(K - K^T - gamma I) y + b, which is one convolution, of as many inputs as outputs."""
        return convolve(y, self.antisymmetric_kernel(gamma), self.bias, self.boundary, self.groups)

    def antisymmetric_kernel(self, gamma: float) -> Tensor:
        """The kernel (C, C / groups, 3, 3) of K - K^T - gamma I."""
        kernel = self.weight - transposed(self.weight, self.groups)
        if gamma == 0:
            return kernel
        eye = torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device).repeat(self.groups, 1)
        return kernel - gamma * F.pad(eye[:, :, None, None], (1, 1, 1, 1))

    def bound(self, height: int, width: int) -> float:
        """A bound on ||K|| on images of this size."""
        return norm_bound(self.weight, (height, width), self.boundary, self.groups)

    def antisymmetric_bound(self, height: int, width: int) -> float:
        """A bound on ||K - K^T|| on images of this size."""
        kernel = self.antisymmetric_kernel(0).detach()
        return norm_bound(kernel, (height, width), self.boundary, self.groups)

    def extra_repr(self) -> str:
        outputs, inputs, kernel, _ = self.weight.shape
        return (
            f"{inputs * self.groups}, {outputs}, kernel={kernel}, bias={self.bias is not None}, "
            f"groups={self.groups}, boundary={self.boundary}"
        )


class TwistedConvolution(TwistConv2d):
    """A twisted K and its exact adjoint, where `Convolution` is the plain one, to which it is equal at first.

    Parameters `weight` and `bias` as of `Convolution`, and `twist` as of `TwistConv2d`, zero at first. By
    the triangle inequality ||K|| <= ||W|| + sum_pq max |X^p Y^q| ||W_pq||, and ||K - K^T|| likewise.

    Args:
        inputs, outputs, bias, groups, boundary, variance: as of `Convolution`; kernels are of size 3x3.
        twist: how the kernels are tied, and how it is computed.

    Raises:
        InputError: groups that do not divide the channels, an unknown boundary.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        twist: Twist,
        *,
        bias: bool = False,
        groups: int = 1,
        boundary: str = "zero",
        variance: float = 2.0,
    ) -> None:
        _check(inputs, outputs, groups, boundary)
        self.variance = variance  # before anything else: the base draws the weights
        mode: PaddingMode = "circular" if boundary == "periodic" else "zeros"
        super().__init__(
            inputs, outputs, 3, padding=1, groups=groups, bias=bias, padding_mode=mode, **asdict(twist)
        )
        self.boundary = boundary

    def reset_parameters(self) -> None:
        """Draw new weights, the same as of `Convolution`; the twist is zero."""
        _draw(self.weight, self.bias, self.groups, self.variance)
        if "twist" in self._parameters:
            nn.init.zeros_(self.twist)

    def _padded(self, u: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return (_wrap(u, 1), (0, 0)) if self.boundary == "periodic" else super()._padded(u)

    def adjoint(self, z: Tensor) -> Tensor:
        """K^T z, with the same weights: (N, outputs, H, W) -> (N, inputs, H, W)."""
        return self._convolve_products(z, self._adjoints(), None)

    def minus_adjoint(self, z: Tensor, bias: Tensor | None) -> Tensor:
        """-(K^T z + bias): (N, outputs, H, W) -> (N, inputs, H, W)."""
        return self._convolve_products(z, -self._adjoints(), None if bias is None else -bias)

    def antisymmetric(self, y: Tensor, gamma: float) -> Tensor:
        """(K - K^T - gamma I) y + b, of as many inputs as outputs."""
        f: Tensor = self(y) - self.adjoint(y)
        return f.sub(y.to(f.dtype), alpha=gamma)

    def bound(self, height: int, width: int) -> float:
        """A bound on ||K|| on images of this size."""
        size = height, width
        return norm_bound(self.weight, size, self.boundary, self.groups) + self._bound_of_twist(size)

    def antisymmetric_bound(self, height: int, width: int) -> float:
        """A bound on ||K - K^T|| on images of this size."""
        size = height, width
        kernel = self.weight - transposed(self.weight, self.groups)
        return norm_bound(kernel.detach(), size, self.boundary, self.groups) + 2 * self._bound_of_twist(size)

    def _adjoints(self) -> Tensor:
        """The kernels (C_in, (1 + monomials) C_out / groups, 3, 3) of W^T and W_pq^T, side by side."""
        return torch.cat([transposed(w, self.groups) for w in (self.weight, *self.kernels())], 1)

    def _convolve_products(self, z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One convolution of z, X z, Y z, ...; z alone is kept for the backward pass."""
        factors = self._monomials(z.shape[2], z.shape[3], like=z).permute(2, 0, 1)[1:]
        padding = (1, 1)
        if self.boundary == "periodic":
            z, factors, padding = _wrap(z, 1), F.pad(factors, (1, 1, 1, 1), mode="circular"), (0, 0)
        geometry = ((1, 1), padding, (1, 1), self.groups)
        return weighted_convolution(z, weight, bias, factors.unbind(), (), geometry)

    def _monomials(self, height: int, width: int, like: Tensor) -> Tensor:
        """1 and the X^p Y^q of the pixels: (H, W, 1 + monomials)."""
        x, y = coordinates(height, width, self.coordinates, like=like)
        return torch.stack([x**p * y**q for p, q in ((0, 0), *self.terms)], 2)

    def _bound_of_twist(self, size: tuple[int, int]) -> float:
        """The sum of max |X^p Y^q| ||W_pq||."""
        largest = self._monomials(*size, like=self.weight.double()).abs().amax((0, 1))[1:].tolist()
        bounds = [norm_bound(w, size, self.boundary, self.groups) for w in self.kernels()]
        return math.fsum(x * bound for x, bound in zip(largest, bounds, strict=True))


def _check(inputs: int, outputs: int, groups: int, boundary: str) -> None:
    check_boundary(boundary)
    if inputs % groups or outputs % groups:
        channels = inputs if inputs % groups else outputs
        raise InputError(f"{groups} groups do not divide {channels} channels; take a divisor")


def _draw(weight: Tensor, bias: Tensor | None, groups: int, variance: float) -> None:
    """New weights, where there are any: the meta device holds none; biases are zero."""
    if not weight.is_meta:
        outputs, _, kernel, _ = weight.shape
        fan_out = outputs // groups * kernel**2
        nn.init.normal_(weight, std=math.sqrt(variance) / math.sqrt(fan_out))
    if bias is not None:
        nn.init.zeros_(bias)


def convolve(y: Tensor, weight: Tensor, bias: Tensor | None, boundary: str, groups: int) -> Tensor:
    """K y + b for a weight (C_out, C_in / groups, k, k)."""
    radius = weight.shape[-1] // 2
    if boundary == "periodic":
        return F.conv2d(_wrap(y, radius), weight, bias, groups=groups)
    return F.conv2d(y, weight, bias, padding=radius, groups=groups)


def transposed(weight: Tensor, groups: int) -> Tensor:
    """The kernel (C_in, C_out / groups, k, k) of K^T: group by group W[c, o, -d].

    As a convolution with this kernel K^T takes the time of `F.conv_transpose2d`, and a fifth less where the
    boundary is periodic or the groups are several (forward and backward, channels-last, on a CPU).
    """
    by_group: Tensor = weight.unflatten(0, (groups, -1))  # (groups, C_out / groups, C_in / groups, k, k)
    return by_group.transpose(1, 2).flip(3, 4).flatten(0, 1)


def _wrap(y: Tensor, radius: int) -> Tensor:
    """The image continued over its edges by 0 or 1 pixels; unlike F.pad it keeps the memory format."""
    if radius == 0:
        return y
    if torch.compiler.is_compiling():
        y = torch.cat((y[:, :, -1:], y, y[:, :, :1]), 2)
        return torch.cat((y[..., -1:], y, y[..., :1]), 3)
    wrapped: Tensor = _Wrap.apply(y)  # type: ignore[no-untyped-call]
    return wrapped


class _Wrap(torch.autograd.Function):
    """(N, C, H, W) -> (N, C, H + 2, W + 2) for the eager mode, in a third of the time of concatenation."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        z = F.pad(y, (1, 1, 1, 1))
        z[:, :, 0], z[:, :, -1] = z[:, :, -2], z[:, :, 1]
        z[..., 0], z[..., -1] = z[..., -2], z[..., 1]
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        dy = g[:, :, 1:-1, 1:-1].clone()
        for i, outside in ((0, -1), (-1, 0)):
            dy[:, :, i] += g[:, :, outside, 1:-1]
            dy[..., i] += g[:, :, 1:-1, outside]
            for j, beyond in ((0, -1), (-1, 0)):
                dy[:, :, i, j] += g[:, :, outside, beyond]
        return dy


@dataclass(frozen=True)
class ConvolutionalField(Field):
    """The options of every shipped field; each gives them its own defaults.

    Args:
        norm: N: a name ("batch", "group", "tv"), `{"name": "tv", "eps": 1e-4}`, a specification, or None.
        activation: s, by name.
        groups: in how many groups the 3x3 convolutions take the channels.
        boundary: "zero" or "periodic".
        bias: whether the convolutions have biases.
        twist: by which the 3x3 convolutions depend on the place: a tie ("conformal"), `{"tie": "free",
            "degree": 2}`, a specification, or None.

    Raises:
        InputError: an unknown norm, activation, boundary or twist; groups that are no positive integer.
    """

    norm: NormOption = None
    activation: str = "relu"
    groups: int = 1
    boundary: str = "zero"
    bias: bool = False
    twist: TwistOption = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", norm_of(self.norm))
        object.__setattr__(self, "twist", twist_of(self.twist))
        activation(self.activation)
        check_boundary(self.boundary)
        if type(self.groups) is not int or self.groups < 1:
            raise InputError(f"{self.name}: {self.groups!r} groups; a positive integer is needed")
        self.refuse_other_than_bool("bias")

    def refuse_other_than_bool(self, option: str) -> None:
        """`InputError` where an option is neither true nor false."""
        value = getattr(self, option)
        if not isinstance(value, bool):
            raise InputError(f"{self.name}: {option} {value!r}; true or false is needed")

    def convolution(
        self, inputs: int, outputs: int, variance: float = 2.0
    ) -> Convolution | TwistedConvolution:
        """A 3x3 convolution with the options of this field."""
        bias, groups, boundary, twist = self.bias, self.groups, self.boundary, twist_of(self.twist)
        if twist is None:
            return Convolution(
                inputs, outputs, bias=bias, groups=groups, boundary=boundary, variance=variance
            )
        return TwistedConvolution(
            inputs, outputs, twist, bias=bias, groups=groups, boundary=boundary, variance=variance
        )

    def normalisation(self, channels: int) -> nn.Module:
        """N for so many channels; the identity where there is none."""
        norm = norm_of(self.norm)
        return nn.Identity() if norm is None else norm.build(channels)

    def normed(self, term: str, n: str = "N", b: str = "b") -> str:
        """The text N(term + b), or what these options leave of it."""
        term = f"{term} + {b}" if self.bias and b else term
        return term if self.norm is None else f"{n}({term})"

    def written(self, term: str, n: str = "N", b: str = "b") -> str:
        """The text s(N(term + b)), or what these options leave of it."""
        return f"{self.activation}({self.normed(term, n, b)})"

    def told(self, equation: str, kernels: str = "K") -> str:
        """An equation, and what its N and its 3x3 convolutions stand for."""
        told = equation if self.norm is None else f"{equation}, N = {self.norm}"
        return told if self.twist is None else f"{told}, {kernels} = {self.twist}"
