"""A convolution weighted by functions of the position, before or after, that keeps only its input.

    y = sum_mn a_m (W_mn * (b_n u)),        a_0 = b_0 = 1

With a = (X, Y) or b = (X, Y) it is a twist (`resode.operators.twist`) or the adjoint of one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
Geometry = tuple[Pair, Pair, Pair, int]  # stride, padding, dilation, groups
Options = tuple[Sequence[Tensor], Sequence[Tensor], Geometry]  # factors before, factors after


def _spread(u: Tensor, factors: Sequence[Tensor], groups: int) -> Tensor:
    """The channels u, f_1 u, f_2 u, ... of each group, concatenated; the adjoint of `_gather`."""
    if not factors:
        return u
    by_group = u.unflatten(1, (groups, -1))
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        parts = [by_group, *((by_group * factor).to(u.dtype) for factor in factors)]
        return torch.cat(parts, 2).flatten(1, 2)
    same = factors[0].new_ones(u.shape[2:])
    every = torch.stack([same, *(factor.expand_as(same) for factor in factors)])
    channels_last = u.is_contiguous(memory_format=torch.channels_last)
    result = torch.empty(
        (u.shape[0], u.shape[1] * len(every), *u.shape[2:]), dtype=u.dtype, device=u.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )  # fmt: skip
    torch.mul(by_group[:, :, None], every[:, None], out=result.unflatten(1, (groups, len(every), -1)))
    return result


def _gather(z: Tensor, factors: Sequence[Tensor], groups: int) -> Tensor:
    """z_0 + f_1 z_1 + f_2 z_2 + ... of the channels z_0, z_1, ... of each group."""
    if not factors:
        return z
    count = len(factors) + 1
    by_group = z.unflatten(1, (groups, count, -1)) if groups > 1 else z.unflatten(1, (count, -1))
    total, *others = by_group.unbind(-4)
    for factor, part in zip(factors, others, strict=True):
        total = torch.addcmul(total, factor, part)
    y: Tensor = total.to(z.dtype)
    return y.flatten(1, 2) if groups > 1 else y


def _weighted(u: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    before, after, geometry = options
    groups = geometry[-1]
    return _gather(F.conv2d(_spread(u, before, groups), weight, bias, *geometry), after, groups)


def weighted_convolution(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    geometry: Geometry,
) -> Tensor:
    """Sum of convolutions whose inputs and outputs are multiplied by functions of the position.

        y = sum_mn a_m W_mn * (b_n u),        a_0 = b_0 = 1

    Only u is kept for the backward pass, which recomputes the products.

    Args:
        u: (N, C, H, W).
        weight: the kernels: in each group, m = 0, 1, ... along the output channels, n = 0, 1, ... along the
            input channels.
        bias: of every output of the convolution, or None.
        before: b_1, b_2, ..., each broadcast to (H, W).
        after: a_1, a_2, ..., each broadcast to the size of the outputs.
        geometry: stride, padding, dilation, groups.
    """
    options = before, after, geometry
    if torch.compiler.is_compiling():  # the compiler decides what to recompute
        return _weighted(u, weight, bias, options)
    y: Tensor = _Weighted.apply(u, weight, bias, options)  # type: ignore[no-untyped-call]  # torch has no types
    return y


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        ctx.save_for_backward(u, weight, bias)
        ctx.options = options
        y = _weighted(u, weight, bias, options)
        return y.clone() if y._is_view() else y  # a view could not be modified in place

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        u, weight, bias = saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivative: autograd differentiates the plain form
            wanted = [t is not None and t.requires_grad for t in saved]
            leaves = [t for t, w in zip(saved, wanted, strict=True) if w]
            alike: list[Any] = [t if t is None else t.to(g.dtype) for t in saved]  # as under autocast
            y = _weighted(alike[0], alike[1], alike[2], ctx.options)
            leaf = iter(torch.autograd.grad(y, leaves, g, create_graph=True))
            return *(next(leaf) if w else None for w in wanted), None
        before, after, (stride, padding, dilation, groups) = ctx.options
        shape = None if bias is None else [bias.shape[0]]
        mask = [*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2]]
        inputs = _spread(u.to(g.dtype), before, groups)
        gradients = torch.ops.aten.convolution_backward(
            _spread(g, after, groups), inputs, weight.to(g.dtype), shape, stride, padding, dilation, False,
            (0, 0), groups, mask,
        )  # fmt: skip
        du = _gather(gradients[0], before, groups) if mask[0] else None
        found = zip((du, *gradients[1:]), saved, mask, strict=True)
        return *(d.to(t.dtype) if t is not None and m else None for d, t, m in found), None
