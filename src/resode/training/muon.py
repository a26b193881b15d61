"""Muon: kernels move along their momentum with its singular values made equal (Jordan et al. 2024).

    v <- m v + g;    d = g + m v (Nesterov) or v;    W <- (1 - lr wd) W - lr max(1, sqrt(o / i)) O(d)

A kernel (C', C, rows, columns) is the matrix of o = C' rows and i = C rows columns; with d = U S V', O(d) is
about U V'. Other parameters take a step of SGD, v <- m v + g + wd theta, in the same optimiser.
Source: K. Jordan, Muon: an optimizer for hidden layers in neural networks, kellerjordan.github.io/posts/muon.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Of the iteration as published: steep at zero, so that five steps do.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
LEAST = 1e-18  # of a norm: what is smaller, whose square is nothing in single precision, is not made longer
Tensors = list[Tensor] | tuple[Tensor, ...]


def orthogonalised(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """About U V' for each matrix U S V' of (..., o, i): singular values between 0.7 and 1.2, vectors kept.

    Newton-Schulz: X <- Q X, Q = a + b A + c A^2, A = X X', from X = M / |M|. All Q and A are polynomials of
    the first A, so that A <- Q A Q, and X is multiplied once, by the product of all Q. Singular values below
    a hundredth of the matrix's norm may stay smaller.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT, steps).mT
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    x = matrices / norms.clamp_min(LEAST)
    turned: Tensor = _product(x @ x.mT, steps) @ x
    return turned


def _product(gram: Tensor, steps: int) -> Tensor:
    """The product of all Q, for each A = X X'."""
    a, b, c = COEFFICIENTS
    product = same = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(steps):
        q = a * same + b * gram + c * gram @ gram
        product, gram = q @ product, q @ gram @ q
    return product


def directions(kernels: Tensors) -> list[Tensor]:
    """max(1, sqrt(o / i)) O(d) for each kernel; Gram matrices of one size are iterated together."""
    matrices = [kernel.flatten(1) for kernel in kernels]
    wide = [m if m.shape[0] <= m.shape[1] else m.mT for m in matrices]
    by_size: dict[int, list[int]] = {}
    for k, matrix in enumerate(wide):
        by_size.setdefault(matrix.shape[0], []).append(k)
    found = list(kernels)
    for members in by_size.values():
        norms = torch.stack(torch._foreach_norm([wide[k] for k in members]))
        scales = norms.clamp_min(LEAST).reciprocal()
        scaled = [wide[k] * scale for k, scale in zip(members, scales, strict=True)]
        products = _product(torch.stack([x @ x.mT for x in scaled]), STEPS)
        for k, x, product in zip(members, scaled, products, strict=True):
            outputs, inputs = matrices[k].shape
            turned = product @ x if outputs <= inputs else (product @ x).mT
            found[k] = turned.mul_(max(1.0, math.sqrt(outputs / inputs))).reshape(kernels[k].shape)
    return found


class Muon(torch.optim.Optimizer):
    """Muon for the groups with `kernels: True`, SGD for the others.

    Args:
        groups: of parameters, each with `kernels`, `lr`, `momentum`, `nesterov`, `weight_decay`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure, which nothing here has
        """One step from the gradients; parameters that have none stay."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if not moved:
                continue
            found = self._momenta(moved, group)
            if group["kernels"]:
                found = directions(found)
                torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(moved, found, alpha=-group["lr"])

    def _momenta(self, moved: list[Tensor], group: dict[str, Any]) -> Tensors:
        """What each parameter follows: d."""
        gradients = [p.grad for p in moved if p.grad is not None]
        if not group["kernels"]:
            gradients = list(torch._foreach_add(gradients, moved, alpha=group["weight_decay"]))
        velocities = [self.state[p]["momentum_buffer"] for p in moved]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients)
        if not group["nesterov"]:
            return velocities
        return torch._foreach_add(gradients, velocities, alpha=group["momentum"])
