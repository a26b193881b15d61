"""The convolution K of the fields, its exact adjoint K^T, and the options that they share.

    (K y)_o(p) = sum_{c, d} W[o, c, d] y_c(p + d) + b_o,      d in {-1, 0, 1}^2,
    (K^T z)_c(p) = sum_{o, d} W[o, c, d] z_o(p - d),          <K y, z> = <y, K^T z> for b = 0.

The boundary is part of the operator: "zero" takes y = 0 outside the image, "periodic" joins its opposite
edges. A 3x3 kernel is a differential operator of order at most 2 along each axis.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resode.errors import InputError
from resode.fields.activations import activation
from resode.fields.base import Field
from resode.fields.norms import NormOption, norm_of
from resode.operators.spectra import check_boundary


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
        check_boundary(boundary)
        if inputs % groups or outputs % groups:
            channels = inputs if inputs % groups else outputs
            raise InputError(f"{groups} groups do not divide {channels} channels; take a divisor")
        self.groups = groups
        self.boundary = boundary
        self.variance = variance
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; on the meta device, which holds none, do nothing."""
        if not self.weight.is_meta:
            outputs, _, kernel, _ = self.weight.shape
            fan_out = outputs // self.groups * kernel**2
            nn.init.normal_(self.weight, std=math.sqrt(self.variance) / math.sqrt(fan_out))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, y: Tensor) -> Tensor:
        return convolve(y, self.weight, self.bias, self.boundary, self.groups)

    def adjoint(self, z: Tensor) -> Tensor:
        """K^T z, with the same weights: (N, outputs, H, W) -> (N, inputs, H, W)."""
        return convolve(z, transposed(self.weight, self.groups), None, self.boundary, self.groups)

    def extra_repr(self) -> str:
        outputs, inputs, kernel, _ = self.weight.shape
        return (
            f"{inputs * self.groups}, {outputs}, kernel={kernel}, bias={self.bias is not None}, "
            f"groups={self.groups}, boundary={self.boundary}"
        )


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

    Raises:
        InputError: an unknown norm, activation or boundary; groups that are no positive integer.
    """

    norm: NormOption = None
    activation: str = "relu"
    groups: int = 1
    boundary: str = "zero"
    bias: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", norm_of(self.norm))
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

    def convolution(self, inputs: int, outputs: int, variance: float = 2.0) -> Convolution:
        """A 3x3 convolution with the options of this field."""
        return Convolution(
            inputs, outputs, bias=self.bias, groups=self.groups, boundary=self.boundary, variance=variance
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

    def told(self, equation: str) -> str:
        """An equation, and what its N stands for."""
        return equation if self.norm is None else f"{equation}, N = {self.norm}"
