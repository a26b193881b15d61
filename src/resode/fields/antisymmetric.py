"""The antisymmetric field: dy/dt = s((K - K^T - gamma I) y + b).

The eigenvalues of K - K^T are imaginary; those of K - K^T - gamma I have real part -gamma: without damping a
linear solution neither grows nor decays. K - K^T is again a 3x3 convolution, computed from the free kernel K
at each evaluation, so it stays antisymmetric whatever the optimizer does to K. For a twisted K it is computed
as K y - K^T y.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from resode.errors import InputError
from resode.fields.activations import Activation, activation
from resode.fields.catalogue import fields
from resode.fields.convolutions import ConvolutionalField, TwistedConvolution
from resode.fields.norms import NormOption, is_number


@fields.register("antisymmetric", summary="s((K - K^T - gamma I) y + b): no growth, no decay")
@dataclass(frozen=True)
class Antisymmetric(ConvolutionalField):
    """f(y) = s(N((K - K^T - gamma I) y + b)) (Haber & Ruthotto 2017, arXiv:1705.03341).

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of K, hence of K^T.
        boundary: "zero" or "periodic".
        bias: learn b.
        gamma: damping, in units of 1 / time; at least 0.
    """

    norm: NormOption = None
    activation: str = "tanh"
    bias: bool = True
    gamma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.gamma) or not 0 <= self.gamma < math.inf:
            raise InputError(f"Antisymmetric: gamma {self.gamma!r}; a number of at least 0 is needed")

    def build(self, width: int) -> nn.Module:
        return AntisymmetricLayer(self, width)

    @property
    def equation(self) -> str:
        matrix = f"(K - K^T - {self.gamma:g} I)" if self.gamma else "(K - K^T)"
        return self.with_legend(self.written(f"{matrix} y"))


class AntisymmetricLayer(nn.Module):
    """s(N((K - K^T - gamma I) y + b)), (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, field: Antisymmetric, width: int) -> None:
        super().__init__()
        self.activation: Activation = activation(field.activation)
        self.gamma = float(field.gamma)
        self.conv = field.convolution(width, width, variance=1 / 9)  # ||K - K^T|| ~ 1
        self.norm = field.normalisation(width)

    def kernel(self) -> Tensor:
        """Compute the kernel (C, C / groups, 3, 3) of K - K^T - gamma I.

        Raises:
            InputError: K is twisted.
        """
        if isinstance(self.conv, TwistedConvolution):
            raise InputError("K - K^T of a twisted K has no kernel: its coefficients depend on the place")
        return self.conv.antisymmetric_kernel(self.gamma)

    def spectrum(self, height: int, width: int) -> tuple[float, float] | None:
        """Return (gamma, w), w >= ||K - K^T||: Jacobian eigenvalues d (-gamma + i v), |v| <= w, d <= 1.

        They are those of D (K - K^T - gamma I) D with D^2 = diag(s') <= 1 and lie in its numerical range.
        None with a norm, or if s is not firmly nonexpansive.
        """
        if not isinstance(self.norm, nn.Identity) or not self.activation.firmly_nonexpansive:
            return None
        return self.gamma, self.conv.antisymmetric_bound(height, width)

    def forward(self, y: Tensor) -> Tensor:
        z: Tensor = self.norm(self.conv.antisymmetric(y, self.gamma))
        return self.activation(z)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}"
