"""Batch normalisation with what follows it, y = relu(w (x - m) r + b + s), as one operator.

m and v are mean and variance of the batch and its pixels, r = (v + eps)^(-1/2) (Ioffe & Szegedy 2015,
arXiv:1502.03167), s the other branch of a residual unit. In plain form this takes four or more passes over
memory, here two; sums are taken in double precision over tiles of 64 pixels in single precision.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resode.kernels.library import call, library, operator

LANES = 16  # channels come in multiples of it
DTYPES = (torch.float32, torch.bfloat16)
_LAST = torch.channels_last

Statistics = tuple[Tensor, Tensor, Tensor, Tensor]


def available() -> bool:
    """Whether the kernels could be built on this machine."""
    return library() is not None


def fits(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the operator takes this input: (N, C, H, W) on the CPU, fp32 or bf16, C a multiple of 16."""
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.dtype in DTYPES
        and x.shape[1] % LANES == 0
        and x.numel() > x.shape[1]
        and weight is not None
        and bias is not None
        and weight.dtype == bias.dtype == torch.float32
    )


def _batch_norm(
    x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> Statistics:
    x, weight, bias = x.contiguous(memory_format=_LAST), weight.contiguous(), bias.contiguous()
    other = None if other is None else other.contiguous(memory_format=_LAST)
    y = torch.empty_like(x)
    mean, variance, r = (torch.empty_like(weight) for _ in range(3))
    given = (x, other, weight, bias, eps, int(relu), y, mean, variance, r)
    call("batch_norm_forward", "ill" + "ppppdi" + "pppp", *_matrix(x), *given)
    return y, mean, variance, r


def _batch_norm_like(
    x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> Statistics:
    y = torch.empty_like(x, memory_format=_LAST)
    return y, torch.empty_like(weight), torch.empty_like(weight), torch.empty_like(weight)


batch_norm = operator(
    "batch_norm(Tensor x, Tensor? other, Tensor weight, Tensor bias, float eps, bool relu)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _batch_norm,
    _batch_norm_like,
)
"""y, mean, variance (of the batch, unbiased) and r.

Args:
    x: (N, C, H, W), fp32 or bf16, as `fits` says.
    other: of the same shape and type, added before the ReLU.
    weight: (C,) fp32.
    bias: (C,) fp32.
    eps: what keeps r finite.
    relu: whether negative values become zero (NaN stays NaN).
"""


def _batch_norm_backward(
    g: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor, relu: bool
) -> Statistics:
    g, x = g.to(x.dtype).contiguous(memory_format=_LAST), x.contiguous(memory_format=_LAST)
    y = None if y is None else y.contiguous(memory_format=_LAST)
    weight, bias, mean, r = (each.contiguous() for each in (weight, bias, mean, r))
    dx = torch.empty_like(x)
    ds = x.new_empty(0) if y is None else torch.empty_like(x)
    dw, db = torch.empty_like(weight), torch.empty_like(weight)
    given = (x, y, g, weight, bias, mean, r, int(relu), dx, None if y is None else ds, dw, db)
    call("batch_norm_backward", "ill" + "pppppppi" + "pppp", *_matrix(x), *given)
    return dx, ds, dw, db


def _batch_norm_backward_like(
    g: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, *_: Tensor | bool
) -> Statistics:
    dx = torch.empty_like(x, memory_format=_LAST)
    ds = x.new_empty(0) if y is None else torch.empty_like(dx)
    return dx, ds, torch.empty_like(weight), torch.empty_like(weight)


batch_norm_backward = operator(
    "batch_norm_backward(Tensor g, Tensor x, Tensor? y, Tensor weight, Tensor bias, Tensor mean, Tensor r,"
    " bool relu) -> (Tensor, Tensor, Tensor, Tensor)",
    _batch_norm_backward,
    _batch_norm_backward_like,
)
"""The cotangents of x, the other branch (empty where there is none), weight and bias.

With h = g where the result is positive (h = g without a ReLU) and means over the batch and its pixels:
dx = w r (h - mean(h) - r^2 (x - m) mean(h (x - m))), ds = h, dw = r sum h (x - m), db = sum h. `y` is the
result where another branch was added before a ReLU, and None elsewhere.
"""


def _follow(running: Sequence[Tensor], now: Sequence[Tensor], momentum: Sequence[float]) -> None:
    for kept, found, weight in zip(running, now, momentum, strict=True):
        kept.lerp_(found, weight)


follow = operator(
    "follow(Tensor(a!)[] running, Tensor[] now, float[] momentum) -> ()",
    _follow,
    lambda running, now, momentum: None,
)
"""Move each running statistic to that of this batch: u <- u + momentum (now - u)."""


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Statistics) -> None:
    x, other, weight, bias, _, relu = inputs
    y, mean, _, r = output
    ctx.save_for_backward(x, y if relu and other is not None else None, weight, bias, mean, r)
    ctx.relu, ctx.other = relu, other is not None


def _backward(ctx: Any, g: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, y, weight, bias, mean, r = ctx.saved_tensors
    dx, ds, dw, db = batch_norm_backward(g, x, y, weight, bias, mean, r, ctx.relu)
    if ctx.other and not ctx.relu:
        ds = g
    return dx, ds if ctx.other else None, dw, db, None, None


torch.library.register_autograd("resode::batch_norm", _backward, setup_context=_setup)


def _matrix(x: Tensor) -> tuple[int, int, int]:
    """Of the (R, C) matrix that x is: whether it has half precision, R and C."""
    channels = x.shape[1]
    return int(x.dtype == torch.bfloat16), x.numel() // channels, channels
