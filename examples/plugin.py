"""Your own field and integrator.

resode train quickstart-parabolic --plugin examples/plugin.py --set model.name=dynamic \\
    --set "model.stages=[{width: 16, field: reaction_diffusion, integrator: ralston, states: 3}]"

Both are frozen dataclasses, registered by name; recipes, weights files, `resode list` and every command with
`--plugin` can use them. `resode.integrators.runge_kutta` builds the same scheme from its tableau; it is
written out here to show what an integrator declares.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resode.fields import Field, fields
from resode.grids import Step
from resode.integrators import Evaluation, FixedStep, integrators
from resode.integrators.base import Carry, Coefficients, RightHandSide


@fields.register("reaction_diffusion", summary="d Laplace y + tanh(R y + b): spreads and reacts")
@dataclass(frozen=True)
class ReactionDiffusion(Field):
    """f(y) = d Laplace y + tanh(R y + b), with d >= 0 for each channel and R a 1x1 convolution.

    A. M. Turing, The chemical basis of morphogenesis, Phil. Trans. R. Soc. B 237 (1952); for residual
    networks: Haber et al. 2019, arXiv:1903.02639. The Laplacian is the five-point stencil with
    y = 0 outside the image. Its eigenvalues lie in (-8, 0), so 8 d h must stay within the stability
    interval of the scheme.

    Args:
        diffusion: initial value of d.
    """

    diffusion: float = 0.1

    def build(self, width: int) -> nn.Module:
        return ReactionDiffusionLayer(self, width)

    @property
    def equation(self) -> str:
        return "d Laplace y + tanh(R y + b)"


class ReactionDiffusionLayer(nn.Module):
    """d Laplace y + tanh(R y + b), (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, field: ReactionDiffusion, width: int) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.full((width, 1, 1), float(field.diffusion)))
        self.reaction = nn.Conv2d(width, width, 1)

    def forward(self, y: Tensor) -> Tensor:
        around = F.pad(y, (1, 1, 1, 1))
        neighbours = (
            around[:, :, :-2, 1:-1]
            + around[:, :, 2:, 1:-1]
            + around[:, :, 1:-1, :-2]
            + around[:, :, 1:-1, 2:]
        )
        return self.d.clamp_min(0) * (neighbours - 4 * y) + torch.tanh(self.reaction(y))


@integrators.register("ralston", summary="Ralston's method: order 2 with the least error bound")
@dataclass(frozen=True)
class Ralston(FixedStep):
    """k1 = f(t, y), k2 = f(t + 2h/3, y + 2h/3 k1), y + h (k1 + 3 k2) / 4.

    A. Ralston, Runge-Kutta methods with minimum error bounds, Math. Comp. 16 (1962).
    """

    equation = "y + h (k1 + 3 k2)/4, k1 = f(t, y), k2 = f(t + 2h/3, y + 2h/3 k1)"

    @property
    def order(self) -> int:
        return 2

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """At t and t + 2/3 h."""
        return Evaluation(s.t), Evaluation(s.t + 2 * s.h / 3)

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        (y,) = carry
        k1 = f(0, y)
        k2 = f(1, y + 2 * s.h / 3 * k1)
        return (y + s.h / 4 * (k1 + 3 * k2),)

    def growth(self, z: complex) -> float:
        """|1 + z + z^2/2|, the same for every two-stage scheme of order 2."""
        return abs(1 + z + z**2 / 2)
