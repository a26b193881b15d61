"""A field and an integrator of your own.

resode train quickstart-parabolic --plugin examples/plugin.py --set model.name=dynamic \\
    --set "model.stages=[{width: 16, field: reaction_diffusion, integrator: ralston, states: 3}]"

Both are frozen dataclasses that are registered by a name; recipes, weights files, `resode list` and every
command that is given `--plugin` know them from then on. `resode.integrators.runge_kutta` would build this
scheme from its tableau alone; it is written out here to show what an integrator says of itself.
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
    """f(y) = d Laplace y + tanh(R y + b), d >= 0 for each channel, R a mixing of channels.

    A. M. Turing, The chemical basis of morphogenesis, Phil. Trans. R. Soc. B 237 (1952); as a reading of
    residual networks: Haber et al. 2019, arXiv:1903.02639. The Laplacian is the five-point stencil with
    y = 0 outside the image, its eigenvalues lie in (-8, 0): the step must keep 8 d h within the scheme's
    stability interval.

    Args:
        diffusion: the initial d.
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
        """|1 + z + z^2/2|, as of any scheme of order 2 with two stages."""
        return abs(1 + z + z**2 / 2)
