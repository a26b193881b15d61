"""Decomposition of 3x3 kernels into reaction, advection, diffusion and mixed derivatives.

In pixels, h = 1, the kernel of the channel pair (o, i) is sum_kl c_kl d^(k+l)/dy^k dx^l (Ruthotto & Haber
2018, arXiv:1804.04272; `resode.operators.stencils`). Reaction, advection, diffusion and mixed derivatives
are disjoint sets P of orders (k, l), and

    S_P^2 = mean_o sum_i sum_{(k, l) in P} c_kl(o, i)^2,    S^2 = sum_P S_P^2,    share of P = S_P^2 / S^2.

Operators of different orders have different units. They are compared on the wave exp(i (x + y)) of one radian
a pixel, whose derivatives all have amplitude 1, so that S_P^2 is a sum of squared amplitudes. (Squares of the
kernel's *entries* do not serve: the nine stencils are not an orthogonal basis, so the squares of the terms do
not add up to those of the kernel.) Shares depend neither on the order of the channels nor on the scale of the
kernel. A normalisation after a convolution cancels S: compare shares between such layers.

Second and first derivatives are also read as a tensor and a vector, which turn with the image: the
least-squares fit over channel pairs of K u = c (u + div(T grad u) + v . grad u),

    T_xx, T_yy = sum c_00 c_02, sum c_00 c_20        T_xy = sum c_00 c_11 / 2        each over sum c_00^2
    v = (sum c_00 c_01, sum c_00 c_10) / sum c_00^2

T has the eigenvalues a +- d: a, half its trace, is the sign of diffusion, and d says by how much it differs
between the axes. Turning the image by an angle keeps a, d and |v|, and turns the axis of a + d and v by it.

Nine independent entries of equal variance, as in most networks at initialisation, do not give equal shares
but 30 % reaction, 40 % advection, 10 % diffusion and 21 % mixed (`INDEPENDENT`). Deviations are learned.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from resode.analysis.kernels import Kernel, kernels_of
from resode.operators.stencils import PARTS

# Variance of c_kl for independent entries: a product of one factor an axis, 3, 2 or 1/2 for order 0, 1, 2.
_SQUARES = (3, 2, 0.5)
_VARIANCE = {name: sum(_SQUARES[i] * _SQUARES[j] for i, j in orders) for name, orders in PARTS.items()}
INDEPENDENT: Mapping[str, float] = {name: v / sum(_VARIANCE.values()) for name, v in _VARIANCE.items()}
INDEPENDENT_SMOOTHING = 1 / 3


@dataclass(frozen=True)
class KernelDecomposition:
    """Reaction, advection, diffusion and mixed shares of one 3x3 kernel, over all its channel pairs.

    The equations stand at the top of the module.

    Args:
        name: name of the layer.
        stage: stage of the network, from 1; None if the layer's name has none.
        time: time of the control node of a dynamic block, or of the step of its scheme; None elsewhere.
        term: "W", or "X", "Y", ... for the kernels Wx, Wy, ... of a twist, evaluated at X = 1 (one image
            side).
        reaction, advection, diffusion, mixed: shares with sum 1; all 0 for a zero kernel.
        strength: S, the root of the sum of the squared amplitudes of all nine terms.
        smoothing: a in pixels^2, half the trace of T, and the least-squares fit of K u = c (u + a Laplace u).
            Positive: the kernel smooths, to first order like the heat equation over the time a; negative: it
            sharpens. Independent entries give 1/3, as does the mean over 3x3 pixels. None without reaction.
        anisotropy: d in pixels^2: along its axes the kernel smooths by a + d and a - d. None without
            reaction.
        axis: the axis of a + d in degrees, from -90 to 90; 0 is along x, 90 along y (downwards). None without
            anisotropy.
        drift: |v| in pixels. None without reaction.
        direction: that of v in degrees, from -180 to 180, measured as `axis`. None without drift.
        isotropic: the Laplacian's share in the second derivatives over all channel pairs, of the sum of the
            squared entries of their tensors: sum (c_20 + c_02)^2 / 2 over sum (c_20^2 + c_02^2 + c_11^2 / 2).
            Independent entries give 1/2. None without second derivatives.
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
    anisotropy: float | None = None
    axis: float | None = None
    drift: float | None = None
    direction: float | None = None
    isotropic: float | None = None

    @property
    def shares(self) -> dict[str, float]:
        """The four shares by name."""
        return {name: getattr(self, name) for name in PARTS}


def pde(model: nn.Module) -> tuple[KernelDecomposition, ...]:
    """Decompose every 3x3 kernel of a network, in the order of its modules.

    Covers `torch.nn.Conv2d` and its subclasses, twists (a row for W and for each of Wx, Wy, ...), and dynamic
    blocks (a row for each control node). Convolutions of other sizes are skipped; `terms` counts them.

    Args:
        model: any network.

    Raises:
        InputError: a kernel with NaN or infinite entries.

    Example:
        >>> rows = pde(resode.load("short/resnet20"))
        >>> rows[0].shares
        {'reaction': ..., 'advection': ..., 'diffusion': ..., 'mixed': ...}
    """
    return tuple(map(_decompose, kernels_of(model)))


def mean_squares(coefficients: Tensor) -> Tensor:
    """Mean over outputs of the sum over inputs of squares: (C', C / groups, ...) -> (...)."""
    return coefficients.square().sum(1).mean(0)


def _decompose(kernel: Kernel) -> KernelDecomposition:
    c = kernel.coefficients
    squares = mean_squares(c)
    by_term = {name: sum(float(squares[order]) for order in orders) for name, orders in PARTS.items()}
    total = sum(by_term.values())
    return KernelDecomposition(
        name=kernel.name,
        stage=kernel.stage,
        time=kernel.time,
        term=kernel.term,
        **{name: value / total if total else 0.0 for name, value in by_term.items()},
        strength=total**0.5,
        **_turning(c),
        isotropic=_isotropic(c),
    )


def _turning(c: Tensor) -> dict[str, Any]:
    """The fit of T and v, in terms that turn with the image or do not change."""
    names = ("smoothing", "anisotropy", "axis", "drift", "direction")
    reaction = c[..., 0, 0]
    weight = float(reaction.square().sum())
    if not weight:
        return dict.fromkeys(names)
    fitted = (reaction[..., None, None] * c).flatten(0, -3).sum(0) / weight
    along_x, along_y, across = float(fitted[0, 2]), float(fitted[2, 0]), float(fitted[1, 1]) / 2
    x, y = float(fitted[0, 1]), float(fitted[1, 0])
    half = (along_x - along_y) / 2
    anisotropy, drift = math.hypot(half, across), math.hypot(x, y)
    axis = math.degrees(math.atan2(across, half)) / 2 if anisotropy else None
    direction = math.degrees(math.atan2(y, x)) if drift else None
    return dict(zip(names, ((along_x + along_y) / 2, anisotropy, axis, drift, direction), strict=True))


def _isotropic(c: Tensor) -> float | None:
    along_x, along_y, mixed = c[..., 0, 2], c[..., 2, 0], c[..., 1, 1]
    whole = float((along_x.square() + along_y.square() + mixed.square() / 2).sum())
    return float((along_x + along_y).square().sum()) / 2 / whole if whole else None
