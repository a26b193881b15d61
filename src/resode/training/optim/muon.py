"""Muon: momentum whose singular values are made equal, for the kernels of convolutions.

    v <- m v + g;    d = g + m v (Nesterov) or v;    W <- (1 - lr wd) W - lr max(1, sqrt(o / i)) O(d)

A kernel (C', C, kh, kw) is a matrix of o = C' outputs and i = C kh kw inputs; for d = U S V', O(d) is close
to U V'. All other parameters take steps of SGD, v <- m v + g + wd theta, in the same optimizer.
Source: K. Jordan, Muon: an optimizer for hidden layers in neural networks, kellerjordan.github.io/posts/muon.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.sgd import sgd

# The published iteration: steep at zero, so that five steps suffice.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
SMALLEST_NORM = 1e-18  # its square is still above zero in fp32; smaller matrices are not scaled up to norm 1
Tensors = list[Tensor] | tuple[Tensor, ...]


def orthogonalised(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """Approximate U V' for each matrix U S V': the singular vectors stay, singular values become 0.7 to 1.2.

    Newton-Schulz iteration: X <- Q X with Q = a + b A + c A^2 and A = X X', from X = M / |M|. All Q and A are
    polynomials in the first A and commute: A <- Q A Q, and X is multiplied once, by the product of all Q.
    Singular values below a hundredth of the matrix's norm may stay smaller.

    Args:
        matrices: (..., o, i).
        steps: of the iteration.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT, steps).mT
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    x = matrices / norms.clamp_min(SMALLEST_NORM)
    gram = x @ x.mT
    product = _product(gram.view(-1, *gram.shape[-2:]), steps)
    result: Tensor = product.view(gram.shape) @ x
    return result


def _product(gram: Tensor, steps: int) -> Tensor:
    """The product of all Q, for each A = X X' in (k, o, o)."""
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
    """max(1, sqrt(o / i)) O(d) for each kernel d.

    Matrices whose shorter sides are equal form one batch: columns of zeros are appended up to the longest,
    which change neither Gram matrix nor norm. Columns are in the order (kh, kw, C), the memory layout of
    kernels in channels-last format.
    """
    matrices = [kernel.movedim(1, -1).flatten(1) for kernel in kernels]
    wide = [m if m.shape[0] <= m.shape[1] else m.mT for m in matrices]
    by_side: dict[int, list[int]] = {}
    for k, matrix in enumerate(wide):
        by_side.setdefault(matrix.shape[0], []).append(k)
    found = list(kernels)
    for members in by_side.values():
        longest = max(wide[k].shape[1] for k in members)
        padded = torch.stack([F.pad(wide[k], (0, longest - wide[k].shape[1])) for k in members])
        for k, result in zip(members, orthogonalised(padded), strict=True):
            outputs, inputs = matrices[k].shape
            own = result[:, : max(outputs, inputs)]
            own = own if outputs <= inputs else own.mT * math.sqrt(outputs / inputs)
            found[k] = own.unflatten(1, kernels[k].movedim(1, -1).shape[1:]).movedim(-1, 1)
    return found


class Muon(torch.optim.Optimizer):
    """Muon for the parameter groups with `kernels: True`, SGD for the others.

    Args:
        groups: parameter groups, each with `kernels`, `lr`, `momentum`, `nesterov` and `weight_decay`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Take one step; parameters without a gradient stay as they are."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in moved if p.grad is not None]
            velocities = [self.state[p]["momentum_buffer"] for p in moved]
            if moved and group["kernels"]:
                _step_kernels(moved, gradients, velocities, group)
            elif moved:
                rule = {name: group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
                sgd(moved, gradients, velocities, fused=True, dampening=0.0, maximize=False, **rule)


def _step_kernels(moved: Tensors, gradients: Tensors, velocities: Tensors, rule: dict[str, Any]) -> None:
    """Take one step of Muon."""
    torch._foreach_mul_(velocities, rule["momentum"])
    torch._foreach_add_(velocities, gradients)
    followed = velocities
    if rule["nesterov"]:
        followed = torch._foreach_add(gradients, velocities, alpha=rule["momentum"])
    torch._foreach_mul_(moved, 1 - rule["lr"] * rule["weight_decay"])
    torch._foreach_sub_(moved, torch._foreach_mul(directions(followed), rule["lr"]))
