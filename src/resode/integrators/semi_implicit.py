"""Semi-implicit steps (IMEX): the field explicitly, a stiff linear operator L = B^T B implicitly.

    damped   (I + h L) y_{n+1} = y_n + h f(t_n, y_n)              solves y' = f - L y
    field    (I + h L) y_{n+1} = y_n + h L y_n + h f(t_n, y_n)    solves y' = f

B is a periodic depthwise 3x3 convolution, so the Fourier transform diagonalises L: its eigenvalue at
frequency (p, q) is |b(p, q)|^2 >= 0 with the transform b of the kernel. One transform and its inverse solve
the system exactly, and one step spreads information over the whole image.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resode.errors import InputError, nearest
from resode.grids import Step, TimeGrid
from resode.integrators.base import Carry, Coefficients, Evaluation, FixedStep, RightHandSide, integrators


@integrators.register("imex", summary="semi-implicit: a learned smoothing solved exactly by FFT, order 1")
@dataclass(frozen=True)
class IMEX(FixedStep):
    """The semi-implicit step of IMEXnet (Haber 2019, arXiv:1903.02639), with a learned B for each step.

    The learned coefficient `B` of shape (steps, C, 3, 3) is initially uniform in [-1/3, 1/3], as in PyTorch's
    depthwise 3x3 convolution, so that L has norm about 1. Images have any size; a kernel wider than the image
    wraps around it. The system is solved in float32 or higher; the result has the dtype of y.

    Args:
        variant: "damped" solves y' = f - L y; "field" solves y' = f and uses L only to damp the step.

    Raises:
        InputError: another variant.
    """

    variant: str = "damped"

    equation = "(I + h B^T B)^-1 (y + h f(t, y)), variant field: ... + h B^T B y"

    def __post_init__(self) -> None:
        if self.variant not in ("damped", "field"):
            near = nearest(str(self.variant), ("damped", "field"))
            raise InputError(f"{self.name}: unknown variant '{self.variant}'{near} (damped, field)")

    @property
    def order(self) -> int:
        """1."""
        return 1

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """One, at t."""
        return (Evaluation(s.t),)

    def coefficients(self, grid: TimeGrid, width: int) -> dict[str, Tensor]:
        """`B`, of shape (steps, width, 3, 3)."""
        return {"B": (2 * torch.rand(grid.steps, width, 3, 3) - 1) / 3}

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        (y,) = carry
        h, kernel = s.h, coefficients["B"]
        slope = f(0, y)
        if self.variant == "damped":
            return (implicit(torch.add(y, slope, alpha=h), kernel, h).to(y.dtype),)
        return (torch.add(y, implicit(slope, kernel, h).to(y.dtype), alpha=h),)

    def factor(self, z: complex, stiffness: float = 0.0) -> complex:
        """The factor of a step for f = lambda y and L = l, with z = h lambda and stiffness = h l."""
        if self.variant == "damped":
            return (1 + z) / (1 + stiffness)
        return 1 + z / (1 + stiffness)

    def growth(self, z: complex) -> float:
        """The largest |factor| over all L >= 0, reached at L = 0 or as L grows without bound."""
        return abs(1 + z) if self.variant == "damped" else max(1.0, abs(1 + z))


def implicit(y: Tensor, kernel: Tensor, h: float) -> Tensor:
    """(I + h B^T B)^{-1} y, in float32 or higher.

    Args:
        y: (N, C, H, W).
        kernel: the periodic kernel of B for each channel, (C, 3, 3).
        h: the step, not negative.
    """
    dtype = torch.promote_types(y.dtype, torch.float32)
    size = (y.shape[2], y.shape[3])
    transformed = torch.fft.rfft2(y.to(dtype))  # (N, C, H, W // 2 + 1)
    solved: Tensor = torch.fft.irfft2(transformed / (1 + h * symbol(kernel.to(dtype), size)), s=size)
    return solved


def symbol(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """The eigenvalues |b|^2 of B^T B at the frequencies of `rfft2`, (C, H, W // 2 + 1).

    A kernel wider than the image wraps around it.
    """
    (height, width), channels = size, kernel.shape[0]
    rows, columns = -(-3 // height), -(-3 // width)  # 1 from 3 pixels on
    padded = F.pad(kernel, (0, columns * width - 3, 0, rows * height - 3))
    wrapped = padded.reshape(channels, rows, height, columns, width).sum((1, 3))
    return torch.view_as_real(torch.fft.rfft2(wrapped)).square().sum(-1)
