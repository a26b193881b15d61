"""Half of a Hamiltonian pair: dY/dt = F(Z), dZ/dt = -F(Y), F(z) = K^T s(N(K z + b)).

Without a norm F is the gradient of E(z) = sum S(K z + b), S' = s, and the pair conserves E1(Z) + E2(Y);
with a norm (TvNorm by default) F is in general no gradient, and the sum drifts. The partitioned schemes build
two such fields, each of half the width with its own K and N.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from resode.fields.activations import Activation, activation
from resode.fields.catalogue import fields
from resode.fields.convolutions import ConvolutionalField
from resode.fields.norms import NormOption


@fields.register(
    "hamiltonian", summary="K^T s(N(K z + b)): half of a Hamiltonian pair; without N it conserves energy"
)
@dataclass(frozen=True)
class Hamiltonian(ConvolutionalField):
    """f(z) = K^T s(N(K z + b)) (Chang et al. 2018, arXiv:1709.03698).

    With TvNorm and without b: Ruthotto & Haber 2018, arXiv:1804.04272.

    Args:
        norm: N, and `twist`, as in `ConvolutionalField`.
        activation: s.
        groups: groups of K, hence of K^T.
        boundary: "zero" or "periodic".
        bias: learn b.
    """

    norm: NormOption = "tv"
    bias: bool = True

    def build(self, width: int) -> nn.Module:
        return HamiltonianLayer(self, width)

    @property
    def equation(self) -> str:
        return self.with_legend(f"K^T {self.written('K y')}")


class HamiltonianLayer(nn.Module):
    """K^T s(N(K z + b)), (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, field: Hamiltonian, width: int) -> None:
        super().__init__()
        self.activation: Activation = activation(field.activation)
        self.conv = field.convolution(width, width, variance=1 / 3)  # ||K||^2 ~ 4/3: stable at h = 1
        self.norm = field.normalisation(width)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv.adjoint(self.activation.inplace(self.norm(self.conv(z))))

    def spectrum(self, height: int, width: int) -> tuple[float, float] | None:
        """Return (||K||^2, 0): the Jacobian K^T diag(s') K is symmetric with eigenvalues in [0, ||K||^2].

        None with a norm, or if s is not firmly nonexpansive.
        """
        if not isinstance(self.norm, nn.Identity) or not self.activation.firmly_nonexpansive:
            return None
        return self.conv.bound(height, width) ** 2, 0.0
