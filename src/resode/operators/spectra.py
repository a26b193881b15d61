"""Operator norms of convolutions: the largest ||K y|| / ||y|| on images of a given size.

On a periodic image a convolution is diagonal in frequency, up to its C_out x C_in symbol

    S(p, q) = sum_{i, j} K[:, :, i, j] exp(2 pi i (p (i - 1) / P + q (j - 1) / Q)),

and ||K|| = max_{p, q} ||S(p, q)||, exactly. With zero padding K is such a circulant on a grid of at least
(H + 1) x (W + 1) between an extension by zeros and a restriction, so the same maximum is an upper bound. On a
grid of the image's own size it would not be one, because the circulant wraps around to the opposite edge.
"""

import torch
from torch import Tensor

from resode.errors import InputError, nearest

BOUNDARIES = ("zero", "periodic")


def check_boundary(boundary: str) -> None:
    """Raise `InputError` for a boundary other than "zero" or "periodic"."""
    if boundary not in BOUNDARIES:
        raise InputError(
            f"unknown boundary {boundary!r}{nearest(str(boundary), BOUNDARIES)} (zero or periodic)"
        )


def norm_bound(weight: Tensor, size: tuple[int, int], boundary: str, groups: int = 1) -> float:
    """An upper bound on ||K||, the largest singular value of a convolution: exact for a periodic boundary.

    Args:
        weight: the kernel (C_out, C_in / groups, k, k), k odd.
        size: height H and width W of the images.
        boundary: "zero" (padding by k // 2) or "periodic".
        groups: of the convolution.

    Raises:
        InputError: an unknown boundary, groups that do not divide C_out, a kernel that is not finite.
    """
    check_boundary(boundary)
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(f"{groups} groups do not divide the {weight.shape[0]} channels of a kernel")
    if not weight.isfinite().all():
        raise InputError("a kernel that is not finite has no norm: look for the step that diverged")
    radius = weight.shape[-1] // 2
    rows, columns = (n + radius if boundary == "zero" else n for n in size)
    kernel = weight.detach().double().unflatten(0, (groups, -1)).to(torch.complex128)
    if kernel.shape[1] < kernel.shape[2]:
        kernel = kernel.transpose(1, 2)  # the smaller of S S* and S* S has the same largest eigenvalue
    across = _waves(columns, radius, columns // 2 + 1, kernel)  # K is real: S(-p, -q) = conj S(p, q)
    largest = 0.0
    for down in _waves(rows, radius, rows, kernel):
        symbol = torch.einsum("gocij,i,qj->gqoc", kernel, down, across)
        largest = max(largest, torch.linalg.eigvalsh(symbol.mH @ symbol).max().item())
    return float(largest**0.5)


def project(weight: Tensor, bound: float, size: tuple[int, int], boundary: str, groups: int = 1) -> Tensor:
    """The kernel scaled down so that its `norm_bound` is at most `bound`; unchanged if it is already.

    Args:
        weight: the kernel (C_out, C_in / groups, k, k), k odd.
        bound: the largest norm allowed, positive.
        size: height H and width W of the images.
        boundary: "zero" (padding by k // 2) or "periodic".
        groups: of the convolution.

    Raises:
        InputError: as for `norm_bound`; a bound that is not positive.
    """
    if not bound > 0:
        raise InputError(f"a kernel of norm at most {bound}: a positive bound is needed")
    weight = weight.detach()
    while (
        norm := norm_bound(weight, size, boundary, groups)
    ) > bound:  # repeat where rounding exceeds the bound
        weight = weight * (bound / norm * (1 - torch.finfo(weight.dtype).eps))
    return weight


def _waves(period: int, radius: int, frequencies: int, like: Tensor) -> Tensor:
    """exp(2 pi i p o / period) for p = 0 ... frequencies - 1 and offsets o = -radius ... radius."""
    p = torch.arange(frequencies, dtype=torch.float64, device=like.device)
    o = torch.arange(-radius, radius + 1, dtype=torch.float64, device=like.device)
    turns = torch.remainder(torch.outer(p, o), period) / period
    return torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)
