"""Stencils: a 3x3 kernel read as a differential operator, and a differential operator written as a kernel.

Along one axis, with pixels h apart,

    s_0 = [0, 1, 0],    s_1 = [-1, 0, 1] / 2h,    s_2 = [1, -2, 1] / h^2

approximate the value, the first and the second derivative. Their nine products s_i (rows) s_j (columns) are a
basis of the 3x3 kernels, exact on all y^k x^l with k, l <= 2, so that

    K = sum_ij c_ij s_i s_j    is    K u = sum_ij c_ij d^(i+j) u / dy^i dx^j,
    c_ij = sum_pq K_pq (y_p^i / i!) (x_q^j / j!),    y = x = (-h, 0, h).

c_00 reacts, c_10 and c_01 advect, c_20 and c_02 diffuse; the other four mix both axes. (Ruthotto & Haber
2018, arXiv:1804.04272, section 2, with the nine products instead of a sum of stencils.)
"""

import torch
from torch import Tensor

from resode.errors import InputError

Order = tuple[int, int]  # of the derivative along y (rows) and along x (columns)

PARTS: dict[str, tuple[Order, ...]] = {
    "reaction": ((0, 0),),
    "advection": ((0, 1), (1, 0)),
    "diffusion": ((0, 2), (2, 0)),
    "mixed": ((1, 1), (1, 2), (2, 1), (2, 2)),
}


def stencils(h: float = 1.0, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The stencils s_0, s_1, s_2 as the rows of a 3x3 matrix."""
    _check_spacing(h)
    rows = [[0.0, 1.0, 0.0], [-0.5 / h, 0.0, 0.5 / h], [1 / h**2, -2 / h**2, 1 / h**2]]
    return torch.tensor(rows, dtype=dtype)


def coefficients(kernel: Tensor, h: float = 1.0) -> Tensor:
    """c_ij of kernels: (..., 3, 3) -> (..., 3, 3), i the order along y and j that along x.

    Args:
        kernel: as in `torch.nn.Conv2d`, with rows and columns as the last axes.
        h: the distance of two pixels.

    Raises:
        InputError: kernels of another size, or a distance that is not positive.
    """
    _check_size(kernel)
    _check_spacing(h)
    rows = [[1.0, 1.0, 1.0], [-h, 0.0, h], [h**2 / 2, 0.0, h**2 / 2]]  # x^j / j! at -h, 0, h
    moments = torch.tensor(rows, dtype=kernel.dtype, device=kernel.device)
    return moments @ kernel @ moments.T


def kernels(coefficients: Tensor, h: float = 1.0) -> Tensor:
    """The kernels with given coefficients (..., 3, 3): the inverse of `coefficients`."""
    _check_size(coefficients)
    s = stencils(h, dtype=coefficients.dtype).to(coefficients.device)
    return s.T @ coefficients @ s


def _check_size(kernel: Tensor) -> None:
    if kernel.shape[-2:] != (3, 3):
        size = "x".join(map(str, kernel.shape[-2:]))
        raise InputError(f"a kernel of size {size}: only 3x3 kernels are read as differential operators")


def _check_spacing(h: float) -> None:
    if not 0 < h < float("inf"):
        raise InputError(f"pixels {h!r} apart: a positive distance is needed")
