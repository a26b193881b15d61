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


def orthogonalised(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """About U V' for each matrix U S V' of (..., o, i): singular values between 0.7 and 1.2, vectors kept.

    Newton-Schulz: X <- Q X, Q = a + b A + c A^2, A = X X', from X = M / |M|. All Q and A are polynomials of
    the first A, so that A <- Q A Q, and X is multiplied once, by the product of all Q. Singular values below
    a hundredth of the matrix's norm may stay smaller.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT, steps).mT
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    x = matrices / norms.clamp_min(torch.finfo(matrices.dtype).tiny)
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    product = same = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    for _ in range(steps):
        q = a * same + b * gram + c * gram @ gram
        product, gram = q @ product, q @ gram @ q
    turned: Tensor = product @ x
    return turned


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
            directions = [self._direction(p, group) for p in moved]
            if group["kernels"]:
                self._move_kernels(moved, directions, group)
            else:
                for parameter, direction in zip(moved, directions, strict=True):
                    parameter.add_(direction, alpha=-group["lr"])

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        if not group["kernels"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        velocity: Tensor = self.state[parameter]["momentum_buffer"]
        velocity.mul_(group["momentum"]).add_(gradient)
        return gradient.add(velocity, alpha=group["momentum"]) if group["nesterov"] else velocity

    @staticmethod
    def _move_kernels(kernels: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> None:
        """Kernels of one shape are orthogonalised together."""
        by_shape: dict[torch.Size, list[int]] = {}
        for k, kernel in enumerate(kernels):
            by_shape.setdefault(kernel.shape, []).append(k)
        for shape, members in by_shape.items():
            outputs, inputs = shape[0], math.prod(shape[1:])
            turned = orthogonalised(torch.stack([directions[k].flatten(1) for k in members]))
            length = group["lr"] * max(1.0, math.sqrt(outputs / inputs))
            for k, matrix in zip(members, turned, strict=True):
                kernels[k].mul_(1 - group["lr"] * group["weight_decay"])
                kernels[k].add_(matrix.view(shape), alpha=-length)
