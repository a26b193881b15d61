"""The convolution K of the fields, its exact adjoint K^T, and the options that fields share.

    (K y)_o(p) = sum_{c, d} W[o, c, d] y_c(p + d) + b_o,      d in {-1, 0, 1}^2,
    (K^T z)_c(p) = sum_{o, d} W[o, c, d] z_o(p - d),          <K y, z> = <y, K^T z> for b = 0.

The boundary is part of the operator: "zero" takes y = 0 outside the image, "periodic" joins its opposite
edges. A 3x3 kernel is a differential operator of order at most 2 along each axis. The coefficients of a
twisted K depend on the coordinates; its adjoint multiplies by the coordinates first:

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
        kernel: 3, or 1 to mix channels only.
        bias: learn b; otherwise b = 0 and is not stored.
        groups: number of channel groups.
        boundary: "zero" or "periodic".
        variance: v of the initial weights.

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
        """Draw new weights (nothing to draw on the meta device)."""
        _draw(self.weight, self.bias, self.groups, self.variance)

    def forward(self, y: Tensor) -> Tensor:
        return convolve(y, self.weight, self.bias, self.boundary, self.groups)

    def adjoint(self, z: Tensor) -> Tensor:
        """Compute K^T z with the same weights: (N, outputs, H, W) -> (N, inputs, H, W)."""
        return convolve(z, transposed(self.weight, self.groups), None, self.boundary, self.groups)

    def minus_adjoint(self, z: Tensor, bias: Tensor | None) -> Tensor:
        """Compute -(K^T z + bias): (N, outputs, H, W) -> (N, inputs, H, W)."""
        bias = None if bias is None else -bias
        return convolve(z, -transposed(self.weight, self.groups), bias, self.boundary, self.groups)

    def antisymmetric(self, y: Tensor, gamma: float) -> Tensor:
        """Compute (K - K^T - gamma I) y + b as one convolution; inputs must equal outputs."""
        return convolve(y, self.antisymmetric_kernel(gamma), self.bias, self.boundary, self.groups)

    def antisymmetric_kernel(self, gamma: float) -> Tensor:
        """Compute the kernel (C, C / groups, 3, 3) of K - K^T - gamma I."""
        kernel = self.weight - transposed(self.weight, self.groups)
        if gamma == 0:
            return kernel
        eye = torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device).repeat(self.groups, 1)
        return kernel - gamma * F.pad(eye[:, :, None, None], (1, 1, 1, 1))

    def bound(self, height: int, width: int) -> float:
        """Bound ||K|| on images of this size."""
        return norm_bound(self.weight, (height, width), self.boundary, self.groups)

    def antisymmetric_bound(self, height: int, width: int) -> float:
        """Bound ||K - K^T|| on images of this size."""
        kernel = self.antisymmetric_kernel(0).detach()
        return norm_bound(kernel, (height, width), self.boundary, self.groups)

    def extra_repr(self) -> str:
        outputs, inputs, kernel, _ = self.weight.shape
        return (
            f"{inputs * self.groups}, {outputs}, kernel={kernel}, bias={self.bias is not None}, "
            f"groups={self.groups}, boundary={self.boundary}"
        )


class TwistedConvolution(TwistConv2d):
    """A twisted K and its exact adjoint; with its initial twist of zero it equals the plain `Convolution`.

    Parameters `weight` and `bias` as in `Convolution`, and `twist` as in `TwistConv2d`. By the triangle
    inequality ||K|| <= ||W|| + sum_pq max |X^p Y^q| ||W_pq||, and ||K - K^T|| likewise.

    Args:
        inputs, outputs, bias, groups, boundary, variance: as in `Convolution`; the kernel size is 3x3.
        twist: how the kernels are tied, and how the twist is computed.

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
        """Draw new weights as `Convolution` does; set the twist to zero."""
        _draw(self.weight, self.bias, self.groups, self.variance)
        if "twist" in self._parameters:
            nn.init.zeros_(self.twist)

    def _padded(self, u: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return (_wrap(u, 1), (0, 0)) if self.boundary == "periodic" else super()._padded(u)

    def adjoint(self, z: Tensor) -> Tensor:
        """Compute K^T z with the same weights: (N, outputs, H, W) -> (N, inputs, H, W)."""
        return self._convolve_products(z, self._adjoints(), None)

    def minus_adjoint(self, z: Tensor, bias: Tensor | None) -> Tensor:
        """Compute -(K^T z + bias): (N, outputs, H, W) -> (N, inputs, H, W)."""
        return self._convolve_products(z, -self._adjoints(), None if bias is None else -bias)

    def antisymmetric(self, y: Tensor, gamma: float) -> Tensor:
        """Compute (K - K^T - gamma I) y + b; inputs must equal outputs."""
        f: Tensor = self(y) - self.adjoint(y)
        return f.sub(y.to(f.dtype), alpha=gamma)

    def bound(self, height: int, width: int) -> float:
        """Bound ||K|| on images of this size."""
        size = height, width
        return norm_bound(self.weight, size, self.boundary, self.groups) + self._bound_of_twist(size)

    def antisymmetric_bound(self, height: int, width: int) -> float:
        """Bound ||K - K^T|| on images of this size."""
        size = height, width
        kernel = self.weight - transposed(self.weight, self.groups)
        return norm_bound(kernel.detach(), size, self.boundary, self.groups) + 2 * self._bound_of_twist(size)

    def _adjoints(self) -> Tensor:
        """Concatenate the kernels of W^T and W_pq^T: (C_in, (1 + monomials) C_out / groups, 3, 3)."""
        return torch.cat([transposed(w, self.groups) for w in (self.weight, *self.kernels())], 1)

    def _convolve_products(self, z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve z, X z, Y z, ... at once; only z is saved for the backward pass."""
        factors = self._monomials(z.shape[2], z.shape[3], like=z).permute(2, 0, 1)[1:]
        padding = (1, 1)
        if self.boundary == "periodic":
            z, factors, padding = _wrap(z, 1), F.pad(factors, (1, 1, 1, 1), mode="circular"), (0, 0)
        geometry = ((1, 1), padding, (1, 1), self.groups)
        return weighted_convolution(z, weight, bias, factors.unbind(), (), geometry)

    def _monomials(self, height: int, width: int, like: Tensor) -> Tensor:
        """Evaluate 1 and the X^p Y^q at the pixels: (H, W, 1 + monomials)."""
        x, y = coordinates(height, width, self.coordinates, like=like)
        return torch.stack([x**p * y**q for p, q in ((0, 0), *self.terms)], 2)

    def _bound_of_twist(self, size: tuple[int, int]) -> float:
        """Compute sum_pq max |X^p Y^q| ||W_pq||."""
        largest = self._monomials(*size, like=self.weight.double()).abs().amax((0, 1))[1:].tolist()
        bounds = [norm_bound(w, size, self.boundary, self.groups) for w in self.kernels()]
        return math.fsum(x * bound for x, bound in zip(largest, bounds, strict=True))


def _check(inputs: int, outputs: int, groups: int, boundary: str) -> None:
    check_boundary(boundary)
    if inputs % groups or outputs % groups:
        channels = inputs if inputs % groups else outputs
        raise InputError(f"{groups} groups do not divide {channels} channels; take a divisor")


def _draw(weight: Tensor, bias: Tensor | None, groups: int, variance: float) -> None:
    """Draw new weights (nothing to draw on the meta device) and set biases to zero."""
    if not weight.is_meta:
        outputs, _, kernel, _ = weight.shape
        fan_out = outputs // groups * kernel**2
        nn.init.normal_(weight, std=math.sqrt(variance) / math.sqrt(fan_out))
    if bias is not None:
        nn.init.zeros_(bias)


def convolve(y: Tensor, weight: Tensor, bias: Tensor | None, boundary: str, groups: int) -> Tensor:
    """Compute K y + b for a weight (C_out, C_in / groups, k, k)."""
    radius = weight.shape[-1] // 2
    if boundary == "periodic":
        return F.conv2d(_wrap(y, radius), weight, bias, groups=groups)
    return F.conv2d(y, weight, bias, padding=radius, groups=groups)


def transposed(weight: Tensor, groups: int) -> Tensor:
    """Compute the kernel (C_in, C_out / groups, k, k) of K^T: W[c, o, -d] within each group.

    A convolution with this kernel takes the time of `F.conv_transpose2d`, and a fifth less with a periodic
    boundary or several groups (forward and backward, channels-last, CPU).
    """
    by_group: Tensor = weight.unflatten(0, (groups, -1))  # (groups, C_out / groups, C_in / groups, k, k)
    return by_group.transpose(1, 2).flip(3, 4).flatten(0, 1)


def _wrap(y: Tensor, radius: int) -> Tensor:
    """Pad periodically by 0 or 1 pixels.

    `F.pad(mode="circular")` gives the same bits, but loses the channels-last format and takes 2 to 7 times as
    long (forward and backward, fp32, one CPU thread).
    """
    if radius == 0:
        return y
    if torch.compiler.is_compiling():
        y = torch.cat((y[:, :, -1:], y, y[:, :, :1]), 2)
        return torch.cat((y[..., -1:], y, y[..., :1]), 3)
    wrapped: Tensor = _Wrap.apply(y)  # type: ignore[no-untyped-call]
    return wrapped


class _Wrap(torch.autograd.Function):
    """(N, C, H, W) -> (N, C, H + 2, W + 2) in eager mode, in a third of the time of concatenation."""

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
    """Options common to all fields of this package; each field sets its own defaults.

    Args:
        norm: N: a name ("batch", "group", "tv"), `{"name": "tv", "eps": 1e-4}`, a specification, or None.
        activation: name of s.
        groups: number of channel groups of the 3x3 convolutions.
        boundary: "zero" or "periodic".
        bias: give the convolutions biases.
        twist: makes the coefficients of the 3x3 convolutions depend on the coordinates: a tie ("conformal"),
            `{"tie": "free", "degree": 2}`, a specification, or None.

    Raises:
        InputError: unknown norm, activation, boundary or twist; groups not a positive integer.
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
        self.check_bool("bias")

    def check_bool(self, option: str) -> None:
        """Raise `InputError` unless an option is true or false."""
        value = getattr(self, option)
        if not isinstance(value, bool):
            raise InputError(f"{self.name}: {option} {value!r}; true or false is needed")

    def convolution(
        self, inputs: int, outputs: int, variance: float = 2.0
    ) -> Convolution | TwistedConvolution:
        """Build a 3x3 convolution with the options of this field."""
        bias, groups, boundary, twist = self.bias, self.groups, self.boundary, twist_of(self.twist)
        if twist is None:
            return Convolution(
                inputs, outputs, bias=bias, groups=groups, boundary=boundary, variance=variance
            )
        return TwistedConvolution(
            inputs, outputs, twist, bias=bias, groups=groups, boundary=boundary, variance=variance
        )

    def normalisation(self, channels: int) -> nn.Module:
        """Build N for this number of channels; the identity if norm is None."""
        norm = norm_of(self.norm)
        return nn.Identity() if norm is None else norm.build(channels)

    def normed(self, term: str, n: str = "N", b: str = "b") -> str:
        """Format N(term + b), without the parts that the options switch off."""
        term = f"{term} + {b}" if self.bias and b else term
        return term if self.norm is None else f"{n}({term})"

    def written(self, term: str, n: str = "N", b: str = "b") -> str:
        """Format s(N(term + b)), without the parts that the options switch off."""
        return f"{self.activation}({self.normed(term, n, b)})"

    def with_legend(self, equation: str, kernels: str = "K") -> str:
        """Append to an equation what N and the 3x3 convolutions stand for."""
        text = equation if self.norm is None else f"{equation}, N = {self.norm}"
        return text if self.twist is None else f"{text}, {kernels} = {self.twist}"
