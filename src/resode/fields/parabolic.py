"""The parabolic (double-symmetric) field: a nonlinear heat equation, dy/dt = -K^T s(K y).

Where s is non-decreasing with slopes in [0, 1] and there is no norm, its Jacobian -K^T diag(s') K is
symmetric with eigenvalues in [-||K||^2, 0]: distances between solutions never grow, nor do they under
Euler's method if h ||K||^2 <= 2. A norm that depends on y (TvNorm and GroupNorm always, BatchNorm in
training) puts its own derivative between K^T and K: with a norm, none of this is claimed.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import Parameter

from resode.fields.activations import Activation, activation
from resode.fields.catalogue import fields
from resode.fields.convolutions import ConvolutionalField
from resode.fields.norms import NormOption


@fields.register("parabolic", summary="-(K^T s(N(K y + b1)) + b2): a nonlinear heat equation")
@dataclass(frozen=True)
class Parabolic(ConvolutionalField):
    """f(y) = -(K^T s(N(K y + b1)) + b2) (Ruthotto & Haber 2018, arXiv:1804.04272).

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of K, hence of K^T.
        boundary: "zero" or "periodic".
        bias: learn b1 (`conv.bias`) and b2 (`bias`); the paper has neither.
    """

    norm: NormOption = "tv"
    bias: bool = True

    def build(self, width: int) -> nn.Module:
        return ParabolicLayer(self, width)

    @property
    def equation(self) -> str:
        term = f"K^T {self.written('K y', b='b1')}"
        return self.with_legend(f"-({term} + b2)" if self.bias else f"-{term}")


class ParabolicLayer(nn.Module):
    """-(K^T s(N(K y + b1)) + b2), (N, C, H, W) -> (N, C, H, W)."""

    bias: Parameter | None

    def __init__(self, field: Parabolic, width: int) -> None:
        super().__init__()
        self.activation: Activation = activation(field.activation)
        self.conv = field.convolution(width, width, variance=1 / 3)  # ||K||^2 ~ 4/3: stable at h = 1
        self.norm = field.normalisation(width)
        bias = Parameter(self.conv.weight.new_zeros(width)) if field.bias else None
        self.register_parameter("bias", bias)

    def forward(self, y: Tensor) -> Tensor:
        return self.conv.minus_adjoint(self.activation.inplace(self.norm(self.conv(y))), self.bias)

    def spectral_bound(self, height: int, width: int) -> float | None:
        """Bound ||K||^2 by b: the eigenvalues of the Jacobian lie in [-b, 0] on images of this size.

        None with a norm, or if s is not firmly nonexpansive.
        """
        if not isinstance(self.norm, nn.Identity) or not self.activation.firmly_nonexpansive:
            return None
        return self.conv.bound(height, width) ** 2

    def spectrum(self, height: int, width: int) -> tuple[float, float] | None:
        """Return (b, 0) if the eigenvalues of the Jacobian are known to lie in [-b, 0]."""
        bound = self.spectral_bound(height, width)
        return None if bound is None else (bound, 0.0)
