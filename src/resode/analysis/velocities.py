"""Vector fields of twisted convolutions, linear in the coordinates of the image.

To first order  Wx = a_x d/dx + a_y d/dy  and  Wy = b_x d/dx + b_y d/dy,  so that for each channel pair

    X (Wx u) + Y (Wy u) = v . grad u + higher orders,    v = (a_x X + b_x Y, a_y X + b_y Y) = M (X, Y),

    M = [a_x  b_x] = d [1 0] + r [0 -1] + s [1  0] + q [0 1]      d: dilation        d = (a_x + b_y) / 2
        [a_y  b_y]     [0 1]     [1  0]     [0 -1]     [1 0]      r: rotation        r = (a_y - b_x) / 2
                                                                  s, q: strain       s = (a_x - b_y) / 2
                                                                                     q = (a_y + b_x) / 2

X points right along the columns and Y down along the rows, so a positive rotation is clockwise in a displayed
image. u + v . grad u = u(x + v) to first order: v is the offset at which a pixel *reads*; under
du/dt = v . grad u a pattern itself moves by -v. The unit is pixels at X = 1, the longer side of the image
(which ends at X = 1/2). The four matrices are orthogonal, and |M|^2 = 2 (d^2 + r^2 + s^2 + q^2).

Strengths are defined as in `resode.analysis.decomposition`: the root of the mean over outputs of the sum over
inputs of squares.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resode.analysis.decomposition import mean_squares
from resode.analysis.kernels import Kernel, kernels_of
from resode.operators.twist import TwistConv2d

THIRD_ORDER = ((1, 2), (2, 1))
EVEN = ((0, 0), (1, 1), (0, 2), (2, 0), (2, 2))


@dataclass(frozen=True)
class Pattern:
    """Linear vector field v = M (X, Y) with dilation d, rotation r, stretch s and shear q, in pixels.

    Stretch s expands one axis and shrinks the other; shear q does the same along the diagonals.
    """

    dilation: float
    rotation: float
    stretch: float
    shear: float

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity at the coordinates X and Y: its components along x (columns) and y (rows)."""
        d, r, s, q = self.dilation, self.rotation, self.stretch, self.shear
        return (d + s) * x + (q - r) * y, (q + r) * x + (d - s) * y

    @property
    def strength(self) -> float:
        """(d^2 + r^2 + s^2 + q^2)^(1/2)."""
        return math.hypot(self.dilation, self.rotation, self.stretch, self.shear)

    @property
    def shares(self) -> dict[str, float]:
        """Dilation, rotation and strain as shares of the sum of squares; all 0 if that is 0."""
        return shares(self.dilation, self.rotation, math.hypot(self.stretch, self.shear))


@dataclass(frozen=True)
class VectorField:
    """Vector field of a twisted 3x3 convolution, to first order in the coordinates.

    Args:
        name: name of the layer.
        stage: stage of the network, from 1; None if the layer's name has none.
        tie: tie of the kernels.
        constant: strength of the constant velocity, that of W, in pixels.
        dilation, rotation, strain: strengths over all channel pairs, in pixels at X = 1.
        third_order: strength of d3/dx2dy and d3/dxdy2 in Wx and Wy, which are not part of a velocity.
        even: strength of the even orders in Wx and Wy (reaction, diffusion, d2/dxdy); 0 for odd ties.
        pattern: leading velocity over all channel pairs: first right singular vector of the matrix (pairs, 4)
            of d, r, s, q, largest entry positive, times its strength. Pairs have it with either sign.
        share: share of the pattern in the sum of squares of that matrix, at least 1/4; 0 for a zero twist.
    """

    name: str
    stage: int | None
    tie: str
    constant: float
    dilation: float
    rotation: float
    strain: float
    third_order: float
    even: float
    pattern: Pattern
    share: float

    @property
    def shares(self) -> dict[str, float]:
        """Dilation, rotation and strain as shares of the sum of squares; all 0 if that is 0."""
        return shares(self.dilation, self.rotation, self.strain)


def shares(dilation: float, rotation: float, strain: float) -> dict[str, float]:
    """Strengths as shares of their sum of squares; all 0 if that is 0."""
    squares = {"dilation": dilation**2, "rotation": rotation**2, "strain": strain**2}
    total = sum(squares.values())
    return {name: value / total if total else 0.0 for name, value in squares.items()}


def vector_fields(model: nn.Module) -> tuple[VectorField, ...]:
    """Vector field of every twisted 3x3 convolution, in the order of the modules.

    For twists of higher degree only the terms X and Y are used.

    Args:
        model: any network.

    Raises:
        InputError: a kernel with NaN or infinite entries.
    """
    ties = {name: m.tie for name, m in model.named_modules() if isinstance(m, TwistConv2d)}
    by_layer: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels_of(model):
        if kernel.name in ties:
            by_layer.setdefault(kernel.name, {})[kernel.term] = kernel
    return tuple(_field(k["W"], k["X"], k["Y"], ties[name]) for name, k in by_layer.items())


def components(x: Kernel, y: Kernel) -> Tensor:
    """(d, r, s, q) of each channel pair of the kernels Wx and Wy: (C', C / groups, 4)."""
    a, b = x.coefficients, y.coefficients
    (ax, ay), (bx, by) = ((c[..., 0, 1], c[..., 1, 0]) for c in (a, b))
    return torch.stack([ax + by, ay - bx, ax - by, ay + bx], -1) / 2


def _field(w: Kernel, x: Kernel, y: Kernel, tie: str) -> VectorField:
    pairs = components(x, y)
    d, r, s, q = mean_squares(pairs).tolist()
    constant = mean_squares(w.coefficients)
    twist = mean_squares(x.coefficients) + mean_squares(y.coefficients)
    pattern, share = _leading_pattern(pairs)
    return VectorField(
        name=w.name,
        stage=w.stage,
        tie=tie,
        constant=float(constant[0, 1] + constant[1, 0]) ** 0.5,
        dilation=d**0.5,
        rotation=r**0.5,
        strain=(s + q) ** 0.5,
        third_order=sum(float(twist[order]) for order in THIRD_ORDER) ** 0.5,
        even=sum(float(twist[order]) for order in EVEN) ** 0.5,
        pattern=pattern,
        share=share,
    )


def _leading_pattern(pairs: Tensor) -> tuple[Pattern, float]:
    """Leading pattern of all channel pairs (C', C / groups, 4), and its share of the sum of squares."""
    matrix = pairs.flatten(0, 1)
    gram = matrix.T @ matrix
    total = float(gram.trace())
    if total == 0:
        return Pattern(0.0, 0.0, 0.0, 0.0), 0.0
    values, vectors = torch.linalg.eigh(gram)
    first = vectors[:, -1]
    first = first * first[first.abs().argmax()].sign()
    strength = (float(values[-1]) / pairs.shape[0]) ** 0.5
    return Pattern(*(strength * first).tolist()), float(values[-1]) / total
