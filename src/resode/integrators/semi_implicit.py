"""Semi-implicit steps (IMEX): the field explicitly, a stiff linear operator L = B^T B implicitly.

    damped   (I + h L) y_{n+1} = y_n + h f(t_n, y_n)              solves y' = f - L y
    field    (I + h L) y_{n+1} = y_n + h L y_n + h f(t_n, y_n)    solves y' = f

    normed   (I + h L) y_{n+1} = N(y_n + h f(t_n, y_n))           with the norm N of the field f

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
from resode.integrators.base import (
    NORM,
    Carry,
    Coefficients,
    Evaluation,
    FixedStep,
    RightHandSide,
    integrators,
)


@integrators.register("imex", summary="semi-implicit: a learned smoothing solved exactly by FFT, order 1")
@dataclass(frozen=True)
class IMEX(FixedStep):
    """The semi-implicit step of IMEXnet (Haber 2019, arXiv:1903.02639), with a learned B for each step.

    The learned coefficient `B` of shape (steps, C, 3, 3) is initially uniform in [-1/3, 1/3], as in PyTorch's
    depthwise 3x3 convolution, so that L has norm about 1. Images have any size; a kernel wider than the image
    wraps around it. The system is solved in float32 or higher; the result has the dtype of y.

    The authors' code (HaberGroup/SemiImplicitDNNs) is `IMEX(zero_mean=True, normed=True)` with the field
    K^T s(N(K y)).

    Args:
        variant: "damped" solves y' = f - L y; "field" solves y' = f and uses L only to damp the step.
        zero_mean: take each kernel of B minus its mean, so that L has no effect on constant images.
        normed: apply the field's own norm N, with the parameters that it has at t, before the system is
            solved. The step then has no order: it does not tend to y as h tends to 0.

    Raises:
        InputError: another variant, options that are not true or false, `normed` with the variant "field".

    Example:
        >>> IMEX(zero_mean=True).kernel(torch.ones(1, 3, 3)).sum()
        tensor(0.)
    """

    variant: str = "damped"
    zero_mean: bool = False
    normed: bool = False

    @property
    def equation(self) -> str:
        """One step; B is written B0 where its kernels have mean zero."""
        b = "B0" if self.zero_mean else "B"
        right = "y + h f(t, y)" + f" + h {b}^T {b} y" * (self.variant == "field")
        legend = ", B0 = B minus the mean of each kernel" * self.zero_mean
        return f"(I + h {b}^T {b})^-1 {'N' * self.normed}({right}){legend}"

    def __post_init__(self) -> None:
        if self.variant not in ("damped", "field"):
            near = nearest(str(self.variant), ("damped", "field"))
            raise InputError(f"{self.name}: unknown variant '{self.variant}'{near} (damped, field)")
        for option in ("zero_mean", "normed"):
            if not isinstance(getattr(self, option), bool):
                raise InputError(f"{self.name}: {option} {getattr(self, option)!r}; true or false is needed")
        if self.normed and self.variant == "field":
            raise InputError(f"{self.name}: normed is an option of the variant damped")

    @property
    def order(self) -> int | None:
        """1; None with a norm before the system is solved."""
        return None if self.normed else 1

    def evaluations(self, s: Step) -> tuple[Evaluation, ...]:
        """One, at t; and one of the field's norm."""
        return (Evaluation(s.t), Evaluation(s.t, NORM))[: 1 + self.normed]

    def coefficients(self, grid: TimeGrid, width: int) -> dict[str, Tensor]:
        """`B`, of shape (steps, width, 3, 3)."""
        return {"B": (2 * torch.rand(grid.steps, width, 3, 3) - 1) / 3}

    def step(self, s: Step, f: RightHandSide, carry: Carry, coefficients: Coefficients) -> Carry:
        (y,) = carry
        h, kernel = s.h, self.kernel(coefficients["B"])
        slope = f(0, y)
        if self.variant == "damped":
            moved = torch.add(y, slope, alpha=h)
            return (implicit(f(1, moved) if self.normed else moved, kernel, h).to(y.dtype),)
        return (torch.add(y, implicit(slope, kernel, h).to(y.dtype), alpha=h),)

    def kernel(self, b: Tensor) -> Tensor:
        """The kernels that act, (..., 3, 3), from the coefficient `B`."""
        return b - b.mean((-2, -1), keepdim=True) if self.zero_mean else b

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
