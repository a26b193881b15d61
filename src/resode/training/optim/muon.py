"""Muon: kernels move along their momentum with its singular values made equal (Jordan et al. 2024).

    v <- m v + g;    d = g + m v (Nesterov) or v;    W <- (1 - lr wd) W - lr max(1, sqrt(o / i)) O(d)

A kernel (C', C, rows, columns) is the matrix of o = C' rows and i = C rows columns; with d = U S V', O(d) is
about U V'. Other parameters take a step of SGD, v <- m v + g + wd theta, in the same optimizer.
Source: K. Jordan, Muon: an optimizer for hidden layers in neural networks, kellerjordan.github.io/posts/muon.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.sgd import sgd

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
    gram = x @ x.mT
    product = _product(gram.view(-1, *gram.shape[-2:]), steps)
    turned: Tensor = product.view(gram.shape) @ x
    return turned


def _product(gram: Tensor, steps: int) -> Tensor:
    """The product of all Q, for each A = X X' of (k, o, o)."""
    a, b, c = COEFFICIENTS
    product = None
    for step in range(steps):
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal(dim1=-2, dim2=-1).add_(a)
        product = q if product is None else q @ product
        if step < steps - 1:
            gram = q @ gram @ q
    assert product is not None
    return product


def directions(kernels: Tensors) -> list[Tensor]:
    """max(1, sqrt(o / i)) O(d) for each kernel; matrices with one shorter side are iterated together.

    There the others have columns of zeros behind their own, which change neither Gram matrix nor norm.
    Columns are in the order rows, columns, C: that of kernels whose channels come last in memory.
    """
    matrices = [kernel.movedim(1, -1).flatten(1) for kernel in kernels]
    wide = [m if m.shape[0] <= m.shape[1] else m.mT for m in matrices]
    by_side: dict[int, list[int]] = {}
    for k, matrix in enumerate(wide):
        by_side.setdefault(matrix.shape[0], []).append(k)
    found = list(kernels)
    for members in by_side.values():
        longest = max(wide[k].shape[1] for k in members)
        together = torch.stack([F.pad(wide[k], (0, longest - wide[k].shape[1])) for k in members])
        for k, turned in zip(members, orthogonalised(together), strict=True):
            outputs, inputs = matrices[k].shape
            own = turned[:, : max(outputs, inputs)]
            own = own if outputs <= inputs else own.mT * math.sqrt(outputs / inputs)
            found[k] = own.unflatten(1, kernels[k].movedim(1, -1).shape[1:]).movedim(-1, 1)
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
            gradients = [p.grad for p in moved if p.grad is not None]
            velocities = [self.state[p]["momentum_buffer"] for p in moved]
            if moved and group["kernels"]:
                _turn(moved, gradients, velocities, group)
            elif moved:
                rule = {name: group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
                sgd(moved, gradients, velocities, fused=True, dampening=0.0, maximize=False, **rule)


def _turn(moved: Tensors, gradients: Tensors, velocities: Tensors, rule: dict[str, Any]) -> None:
    """A step of kernels."""
    torch._foreach_mul_(velocities, rule["momentum"])
    torch._foreach_add_(velocities, gradients)
    followed = velocities
    if rule["nesterov"]:
        followed = torch._foreach_add(gradients, velocities, alpha=rule["momentum"])
    torch._foreach_mul_(moved, 1 - rule["lr"] * rule["weight_decay"])
    torch._foreach_sub_(moved, torch._foreach_mul(directions(followed), rule["lr"]))
