"""A tied twist by its generators: few numbers are learned, so few products are needed.

A tie makes the kernels W_pq = sum_n t_n B_npq of numbers t (C', C, n) and a basis B of -1, 0 and 1. So

    T(u) = W * u + sum_pq X^p Y^q (W_pq * u) = W * u + sum_n t_n V_n u,    V_n u = sum_pq X^p Y^q (B_npq * u)

V_n acts on each channel alone: for the conformal tie of degree 1 it is X d/dx + Y d/dy or X d/dy - Y d/dx,
along the axes and along the diagonals; and t_n mixes channels at a pixel. A 3x3 kernel takes 9 + 4 products
of channels instead of 27.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from resode import acceleration
from resode.acceleration import TwistKernel
from resode.operators.weighted import Geometry, Pair

Signs = list[list[list[list[float]]]]


def generated(u: Tensor, signs: Signs, factors: Tensor, geometry: Geometry) -> Tensor:
    """V u: (N, C, H, W) -> (N, groups n C / groups, H', W'), in each group one generator after another.

    Args:
        u: the image.
        signs: the basis, (n, terms, rows, columns).
        factors: X^p Y^q of each term, (terms, H', W').
        geometry: stride, padding, dilation, groups.
    """
    stride, padding, dilation, groups = geometry
    padded = F.pad(u, (padding[1], padding[1], padding[0], padding[0]))
    height, width = factors.shape[1:]
    shifted: dict[Pair, Tensor] = {}
    results = []
    for generator in signs:
        total = None
        for factor, kernel in zip(factors, generator, strict=True):
            for row, entries in enumerate(kernel):
                for column, sign in enumerate(entries):
                    if sign:
                        if (row, column) not in shifted:
                            rows, columns = (
                                slice(k * d, k * d + s * (size - 1) + 1, s)
                                for k, d, s, size in zip(
                                    (row, column), dilation, stride, (height, width), strict=True
                                )
                            )
                            shifted[row, column] = padded[..., rows, columns]
                        term = sign * factor * shifted[row, column]
                        total = term if total is None else total + term
        assert total is not None
        results.append(total.to(u.dtype))
    return torch.stack([v.unflatten(1, (groups, -1)) for v in results], 2).flatten(1, 3)


def plain(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    twist: Tensor,
    signs: Signs,
    factors: Tensor,
    geometry: Geometry,
) -> Tensor:
    """T(u), in operations of torch; arguments as of `generated` and of a convolution."""
    mixing = twist.transpose(1, 2).flatten(1)[:, :, None, None]
    y = F.conv2d(u, weight, bias, *geometry)
    return y + F.conv2d(generated(u, signs, factors, geometry), mixing, groups=geometry[-1])


def kernel(u: Tensor, weight: Tensor, twist: Tensor, groups: int) -> TwistKernel | None:
    """The registered kernel, if there is one that supports these inputs; under autocast `u` is already cast.

    Traced and exported graphs consist of operations of torch, so there it is None.
    """
    if torch._C._get_tracing_state() or torch.compiler.is_exporting() or not _loaded():
        return None
    found = acceleration.twist.value
    return found if found is not None and found.supports(u, weight, twist, groups) else None


def _loaded() -> bool:
    """Whether a kernel is registered, which is imported here."""
    return acceleration.twist.get() is not None


# The compiler cannot trace an import. This is what `torch.compiler.assume_constant_result` does, which would
# import torch._dynamo: as much time again as torch.
_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a mark on the function
