"""A tied twist by its generators: few numbers are learned, so few products are needed.

A tie makes the kernels W_pq = sum_n t_n B_npq of numbers t (C', C, n) and a basis B of -1, 0 and 1. So

    T(u) = W * u + sum_pq X^p Y^q (W_pq * u) = W * u + sum_n t_n V_n u,    V_n u = sum_pq X^p Y^q (B_npq * u)

V_n acts on each channel alone: for the conformal tie in degree 1 it is X d/dx + Y d/dy or X d/dy - Y d/dx,
along the axes and along the diagonals; and t_n mixes channels at a pixel. A 3x3 kernel takes 9 + 4 products
of channels in place of 27. Where there is a kernel for it (`fits`), V u is made again in the backward pass:
u alone is kept.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resode.kernels import convolution
from resode.kernels.generators import DTYPES, Generators, available
from resode.operators.weighted import Geometry, Pair

_LAST = torch.channels_last
BYTES = 1 << 22  # of V u, about, that are made at once

Signs = list[list[list[list[float]]]]
Gradients = tuple[Tensor, Tensor, Tensor]


def generated(u: Tensor, signs: Signs, factors: Tensor, geometry: Geometry) -> Tensor:
    """V u: (N, C, H, W) -> (N, groups n C / groups, H', W'), of each group one generator after another.

    Args:
        u: the image.
        signs: the basis, (n, terms, rows, columns).
        factors: X^p Y^q of each term, (terms, H', W').
        geometry: stride, padding, dilation, groups.
    """
    stride, padding, dilation, groups = geometry
    padded = F.pad(u, (padding[1], padding[1], padding[0], padding[0]))
    height, width = factors.shape[1:]
    seen: dict[Pair, Tensor] = {}
    found = []
    for generator in signs:
        total = None
        for factor, kernel in zip(factors, generator, strict=True):
            for row, entries in enumerate(kernel):
                for column, sign in enumerate(entries):
                    if sign:
                        if (row, column) not in seen:
                            rows, columns = (
                                slice(k * d, k * d + s * (size - 1) + 1, s)
                                for k, d, s, size in zip(
                                    (row, column), dilation, stride, (height, width), strict=True
                                )
                            )
                            seen[row, column] = padded[..., rows, columns]
                        part = sign * factor * seen[row, column]
                        total = part if total is None else total + part
        assert total is not None
        found.append(total.to(u.dtype))
    return torch.stack([v.unflatten(1, (groups, -1)) for v in found], 2).flatten(1, 3)


def plain(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    twist: Tensor,
    signs: Signs,
    factors: Tensor,
    geometry: Geometry,
) -> Tensor:
    """T(u), in operations of torch."""
    mixing = twist.transpose(1, 2).flatten(1)[:, :, None, None]
    y = F.conv2d(u, weight, bias, *geometry)
    return y + F.conv2d(generated(u, signs, factors, geometry), mixing, groups=geometry[-1])


def fits(u: Tensor, weight: Tensor, twist: Tensor, groups: int) -> bool:
    """Whether the operator takes these; under autocast `u` is what it makes of the image."""
    return (
        u.device.type == "cpu"
        and u.dtype in DTYPES
        and (u.dtype == torch.float32 or torch.is_autocast_enabled("cpu"))
        and weight.dtype == torch.float32
        and groups == 1
        and twist.shape[2] > 0
        and not torch._C._get_tracing_state()
        and not torch.compiler.is_exporting()
        and available()
    )


@torch.library.custom_op("resode::generated_convolution", mutates_args=())
def generated_convolution(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    twist: Tensor,
    basis: Tensor,
    factors: Tensor,
    geometry: Sequence[int],
) -> Tensor:
    """T(u), (N, C, H, W) -> (N, C', H', W'), channels-last and of the type of u.

    Args:
        u: fp32 or bf16; parameters are rounded to its type.
        weight: (C', C, rows, columns) fp32.
        bias: (C',) fp32, or None.
        twist: the numbers (C', C, n) fp32.
        basis: (n, terms, rows, columns).
        factors: (terms, H', W') fp32.
        geometry: stride, padding and dilation, of rows and of columns each: six numbers.
    """
    u = u.contiguous(memory_format=_LAST)
    bias = None if bias is None else bias.to(u.dtype)
    with torch.autocast("cpu", enabled=False):
        y: Tensor = F.conv2d(u, _like(u, weight), bias, *_pairs(geometry))
        y = y.contiguous(memory_format=_LAST)
        generators, mixing = Generators(basis, factors, *_pairs(geometry)), _mixing(u, twist)
        for some_u, some_y in _parts(generators, u, y):
            _flat(some_y).addmm_(generators(some_u), mixing.T)
    return y


@generated_convolution.register_fake
def _(u: Tensor, weight: Tensor, bias: Any, twist: Tensor, basis: Tensor, factors: Tensor, *_: Any) -> Tensor:
    return u.new_empty(u.shape[0], weight.shape[0], *factors.shape[1:]).contiguous(memory_format=_LAST)


@torch.library.custom_op("resode::generated_convolution_backward", mutates_args=())
def generated_convolution_backward(
    g: Tensor,
    u: Tensor,
    weight: Tensor,
    twist: Tensor,
    basis: Tensor,
    factors: Tensor,
    geometry: Sequence[int],
    image: bool,
) -> Gradients:
    """The cotangents of u, which is empty unless `image` says that it is wanted, of weight and of twist."""
    g, u = (each.to(u.dtype).contiguous(memory_format=_LAST) for each in (g, u))
    with torch.autocast("cpu", enabled=False):
        du, dw = _gradients(g, u, weight, geometry, image)
        generators, mixing = Generators(basis, factors, *_pairs(geometry)), _mixing(u, twist)
        dt = torch.zeros(mixing.shape, dtype=torch.float32)
        for some_u, some_g, some_du in _parts(generators, u, g, du if image else g):
            flat = _flat(some_g)
            dt += flat.T @ generators(some_u)
            if image:
                generators.add_adjoint(flat @ mixing, some_du)
    return du, dw, dt.view(g.shape[1], -1, u.shape[1]).transpose(1, 2).contiguous()


@generated_convolution_backward.register_fake
def _(g: Tensor, u: Tensor, weight: Tensor, twist: Tensor, *others: Any) -> Gradients:
    du = torch.empty_like(u, memory_format=_LAST) if others[-1] else u.new_empty(0)
    return du, weight.new_empty(weight.shape), twist.new_empty(twist.shape)


def _gradients(
    g: Tensor, u: Tensor, weight: Tensor, geometry: Sequence[int], image: bool
) -> tuple[Tensor, Tensor]:
    """Those of the convolution W * u."""
    ours = (
        u.dtype == torch.bfloat16
        and set(geometry) == {1}
        and convolution.fits(u, weight)
        and convolution.available()
    )
    du, dw, _ = torch.ops.aten.convolution_backward(
        g, u, _like(u, weight), None, *_pairs(geometry), False, [0, 0], 1, [image, not ours, False]
    )
    dw = convolution.kernel_gradient(g, u).permute(2, 3, 0, 1) if ours else dw.float()
    return du.contiguous(memory_format=_LAST) if image else u.new_empty(0), dw.contiguous()


def _pairs(geometry: Sequence[int]) -> tuple[Pair, Pair, Pair]:
    a, b, c, d, e, f = geometry
    return (a, b), (c, d), (e, f)


def _like(u: Tensor, weight: Tensor) -> Tensor:
    return weight.to(u.dtype).contiguous(memory_format=_LAST)


def _mixing(u: Tensor, twist: Tensor) -> Tensor:
    """The numbers as a matrix, (C', n C)."""
    return twist.to(u.dtype).transpose(1, 2).flatten(1)


def _parts(generators: Generators, u: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The images a few at a time, so that V u stays in the caches of a processor."""
    count = max(1, BYTES // generators.bytes_each(u))
    yield from zip(*(t.split(count) for t in (u, *others)), strict=True)


def _flat(y: Tensor) -> Tensor:
    """Pixels by channels, a view."""
    return y.permute(0, 2, 3, 1).view(-1, y.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, weight, bias, twist, basis, factors, ctx.geometry = inputs
    ctx.save_for_backward(u, weight, bias, twist, basis, factors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    u, weight, bias, twist, basis, factors = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is asked for: autograd finds it in the plain form
        given: tuple[Any, ...] = (u, weight, bias, twist)
        wanted = [each is not None and each.requires_grad for each in given]
        leaves = [each for each, w in zip(given, wanted, strict=True) if w]
        alike: tuple[Any, ...] = tuple(None if each is None else each.to(g.dtype) for each in given)
        y = plain(alike[0], alike[1], alike[2], alike[3], basis.tolist(), factors, (*_pairs(ctx.geometry), 1))
        found = iter(torch.autograd.grad(y, leaves, g, create_graph=True))
        return *(next(found) if w else None for w in wanted), *[None] * 3
    image = ctx.needs_input_grad[0]
    du, dw, dt = generated_convolution_backward(g, u, weight, twist, basis, factors, ctx.geometry, image)
    return (
        du if image else None,
        dw,
        None if bias is None else g.sum((0, 2, 3), dtype=torch.float32),
        dt,
        *[None] * 3,
    )


generated_convolution.register_autograd(_backward, setup_context=_setup)
