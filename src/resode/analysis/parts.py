"""Parts: how much of a kernel reacts, advects, diffuses, and mixes both axes.

In pixels, h = 1, the kernel of the channel pair (o, i) is sum_kl c_kl d^(k+l)/dy^k dx^l (Ruthotto & Haber
2018, arXiv:1804.04272; `resode.operators.stencils`). A part P is a set of orders (k, l), and

    S_P^2 = mean_o sum_i sum_{(k, l) in P} c_kl(o, i)^2,    S^2 = sum_P S_P^2,    share of P = S_P^2 / S^2.

Operators of different orders have different units; they are compared on the wave exp(i (x + y)) of one radian
a pixel, of which every derivative has the amplitude 1, so that S_P^2 sums squared amplitudes. (The squares of
the *entries* would not do: the nine stencils are a basis, but not an orthogonal one, and the squares of the
parts do not add up to those of the kernel.) Shares change neither with the order of the channels nor with
the scale of the kernel. A norm behind a convolution divides S out again: between such layers compare shares.

Nine independent entries of equal variance, as most networks have at first, are no equal parts:
30 % reaction, 40 % advection, 10 % diffusion, 21 % mixed (`INDEPENDENT`). What differs was learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from resode.analysis.kernels import Kernel, kernels_of
from resode.operators.stencils import PARTS

# The variance of c_kl is the product of the sums of squares of the moments: 3, 2 and 1/2 along each axis.
_SQUARES = (3, 2, 0.5)
_VARIANCE = {part: sum(_SQUARES[i] * _SQUARES[j] for i, j in orders) for part, orders in PARTS.items()}
INDEPENDENT: Mapping[str, float] = {part: v / sum(_VARIANCE.values()) for part, v in _VARIANCE.items()}
INDEPENDENT_SMOOTHING = 1 / 3


@dataclass(frozen=True)
class KernelStrength:
    """The parts of one 3x3 kernel (of all its channel pairs together); the equations are the module's.

    Args:
        name: of the layer.
        stage: counted from 1; None where the name tells none.
        time: of a control node of a dynamic block, or of a step of its scheme; None elsewhere.
        term: "W", or "X", "Y", ... for the kernels Wx, Wy, ... of a twist, taken where X = 1 (one side of
            the image).
        reaction, advection, diffusion, mixed: shares, which sum to 1; all 0 of a kernel that is 0.
        strength: S, the root of the sum of the squared amplitudes of all nine terms.
        smoothing: a in pixels^2, the best a (least squares over channel pairs) in K u = c (u + a Laplace u),
            a = sum c_00 (c_20 + c_02) / 2 sum c_00^2. Positive: it smooths, to first order as the heat
            equation does in the time a; negative: it sharpens. Independent entries give 1/3, as does the
            mean over 3x3 pixels. None without reaction.
    """

    name: str
    stage: int | None
    time: float | None
    term: str
    reaction: float
    advection: float
    diffusion: float
    mixed: float
    strength: float
    smoothing: float | None

    @property
    def shares(self) -> dict[str, float]:
        """The four shares by name."""
        return {part: getattr(self, part) for part in PARTS}


def pde(model: nn.Module) -> tuple[KernelStrength, ...]:
    """The parts of every 3x3 kernel of a network, in the order of its modules.

    Read are `torch.nn.Conv2d` and its subclasses, twists (a row for W and for each of Wx, Wy, ...), and
    dynamic blocks (a row for each control node). Convolutions of other sizes are left out; `terms` counts
    them.

    Args:
        model: any network.

    Raises:
        InputError: a kernel that is not finite.
    """
    return tuple(map(_strength, kernels_of(model)))


def mean_squares(coefficients: Tensor) -> Tensor:
    """The mean over outputs of the sum over inputs of squares: (C', C / groups, ...) -> (...)."""
    return coefficients.square().sum(1).mean(0)


def _strength(kernel: Kernel) -> KernelStrength:
    c = kernel.coefficients
    squares = mean_squares(c)
    parts = {part: sum(float(squares[order]) for order in orders) for part, orders in PARTS.items()}
    total = sum(parts.values())
    reaction, diffusion = c[..., 0, 0], c[..., 2, 0] + c[..., 0, 2]
    weight = float(reaction.square().sum())
    return KernelStrength(
        name=kernel.name,
        stage=kernel.stage,
        time=kernel.time,
        term=kernel.term,
        **{part: value / total if total else 0.0 for part, value in parts.items()},
        strength=total**0.5,
        smoothing=float((reaction * diffusion).sum()) / (2 * weight) if weight else None,
    )
