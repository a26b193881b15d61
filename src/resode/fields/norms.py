"""Normalisations N of a state, each followed by a scale and a bias per channel.

    batch   each channel by its mean and variance over the batch, running ones later (arXiv:1502.03167)
    group   each group of channels by its mean and variance over one image (arXiv:1803.08494)
    tv      each pixel by sqrt(sum_c y_c^2 + eps), over its channels (arXiv:1804.04272)

Scale and bias are part of theta; the running mean and variance of `batch` belong to one evaluation.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from resode.errors import InputError, nearest
from resode.fields.batch_norm import BatchNorm2d
from resode.registry import Registry, instance


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation, of torch or of this file: its vectors are scales and shifts."""
    return isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm | TvNorm2d)


class Norm(ABC):
    """Specification of a normalisation; every concrete one is a frozen dataclass."""

    @abstractmethod
    def build(self, channels: int) -> nn.Module:
        """Build a module (N, channels, H, W) -> same shape, with parameters `weight` and `bias`.

        Its backward pass must not need its output: an in-place activation may follow.

        Raises:
            InputError: options that do not fit the channels.
        """

    def to_data(self) -> str | dict[str, Any]:
        """Return plain data from which `norms.of` makes the same norm."""
        return norms.describe(self)


NormOption = Norm | str | Mapping[str, Any] | None
norms: Registry[Norm] = Registry("norm", "")


def norm_of(value: NormOption) -> Norm | None:
    """Resolve an option `norm`: a name, `{"name": "tv", "eps": 1e-4}`, a specification, or None.

    Raises:
        InputError: anything else, an unknown name or option, an impossible value.
    """
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(name, str) and name not in norms.names():
        raise InputError(f"unknown norm '{name}'{nearest(name, norms.names())} ({_choices()})")
    if value is None:
        return None
    norm: Norm = instance(norms.of(value), Norm, "norm", f"a name ({_choices()})")
    return norm


def _choices() -> str:
    return ", ".join(norms.names()) + ", or null for none"


@norms.register("batch", summary="each channel by its mean and variance over the batch")
@dataclass(frozen=True)
class BatchNorm(Norm):
    """n_c = (y_c - mean_c) / sqrt(var_c + eps), statistics over the batch and its pixels.

    Ioffe & Szegedy 2015, arXiv:1502.03167. In training mode the running statistics move by `momentum` towards
    those of the batch; evaluation mode uses the running statistics.
    """

    eps: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        _check_eps("BatchNorm", self.eps)
        if not is_number(self.momentum) or not 0 <= self.momentum <= 1:
            raise InputError(f"BatchNorm: momentum {self.momentum!r}; a number from 0 to 1 is needed")

    def build(self, channels: int) -> nn.Module:
        return BatchNorm2d(channels, self.eps, self.momentum)


@norms.register("group", summary="each group of channels by its mean and variance over one image")
@dataclass(frozen=True)
class GroupNorm(Norm):
    """n = (y - mean) / sqrt(var + eps), statistics over the pixels and channels of a group, one image.

    Wu & He 2018, arXiv:1803.08494.

    Args:
        groups: number of groups (default: the largest divisor of the channels that is at most 8).
        eps: added to the variance.
    """

    groups: int | None = None
    eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_eps("GroupNorm", self.eps)
        if self.groups is not None and (type(self.groups) is not int or self.groups < 1):
            raise InputError(f"GroupNorm: {self.groups!r} groups; a positive integer is needed, or null")

    def build(self, channels: int) -> nn.Module:
        groups = self.groups or max(n for n in range(1, 9) if channels % n == 0)
        if channels % groups:
            raise InputError(
                f"GroupNorm: {groups} groups do not divide {channels} channels; choose a divisor, "
                "or omit `groups`"
            )
        return GroupNorm2d(groups, channels, self.eps)


class GroupNorm2d(nn.GroupNorm):
    """`nn.GroupNorm`, (N, channels, H, W) -> same shape, safe for inputs without a gradient.

    The backward pass of torch (2.13, CPU, channels-last) crashes if the parameters require a gradient
    and the input does not: scale and bias are then applied separately, which is slower.
    """

    def forward(self, y: Tensor) -> Tensor:
        if y.requires_grad or not torch.is_grad_enabled():
            return super().forward(y)
        n = F.group_norm(y, self.num_groups, eps=self.eps)
        return n.mul(self.weight[:, None, None]).add(self.bias[:, None, None]).to(n.dtype)


@norms.register("tv", summary="each pixel by the root of the sum of squares of its channels")
@dataclass(frozen=True)
class TvNorm(Norm):
    """n = y / sqrt(sum_c y_c^2 + eps) at each pixel (Ruthotto & Haber 2018, arXiv:1804.04272).

    Args:
        eps: added to the sum of squares: 1e-3 in the paper, 1e-4 in its toolbox.
        scale: learn a scale per channel (the paper); if false it is 1 and not stored (the toolbox).
    """

    eps: float = 1e-3
    scale: bool = True

    def __post_init__(self) -> None:
        _check_eps("TvNorm", self.eps)
        if not isinstance(self.scale, bool):
            raise InputError(f"TvNorm: scale {self.scale!r}; true or false is needed")

    def build(self, channels: int) -> nn.Module:
        return TvNorm2d(channels, self.eps, self.scale)


class TvNorm2d(nn.Module):
    """weight y / sqrt(sum_c y_c^2 + eps) + bias, (N, channels, H, W) -> same shape; weight None means 1."""

    weight: nn.Parameter | None

    def __init__(self, channels: int, eps: float = 1e-3, scale: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if scale else None)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # Inductor fuses the plain form, forward and backward
            return tv_norm(y, self.weight, self.bias, self.eps)
        n: Tensor = _TvNorm.apply(y, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        return n

    def extra_repr(self) -> str:
        return f"{self.bias.shape[0]}, eps={self.eps:g}, scale={self.weight is not None}"


def tv_norm(y: Tensor, w: Tensor | None, b: Tensor, eps: float) -> Tensor:
    """Compute N(y) = w r y + b with r = (sum_c y_c^2 + eps)^(-1/2)."""
    precision = torch.promote_types(y.dtype, torch.float32)
    n = y * (y.to(precision).square().sum(1, keepdim=True) + eps).rsqrt()
    scaled = n if w is None else n * w[:, None, None]
    return (scaled + b[:, None, None]).to(y.dtype)


class _TvNorm(torch.autograd.Function):
    """`tv_norm` in eager mode, in half the time; saves only y and r for the backward pass.

    For a cotangent g: dy = r w g - r^3 <y, w g>_c y, dw = sum r y g, db = sum g. Half precision computes in
    fp32. Sums over channels and pixels are matrix products, which on a CPU are faster than reductions.
    `F.rms_norm` over the channels with eps / C is the same function, but takes 2 to 5 times as long (forward
    and backward, channels-last, one CPU thread).
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor | None, b: Tensor, eps: float) -> Tensor:
        precision = torch.promote_types(y.dtype, torch.float32)
        r = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=precision).square_().add_(eps).rsqrt_()
        ctx.save_for_backward(y, r, w, b)
        ctx.eps = eps
        b = b[:, None, None]
        n = torch.addcmul(b, y, r) if w is None else (y * r).mul_(w[:, None, None]).add_(b)
        return n.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        y, r, w, b = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivative (create_graph): differentiate the plain form
            inputs = [t for t in (y, w, b) if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(tv_norm(y, w, b, ctx.eps), inputs, g, create_graph=True))
            dy, dw, db = (next(found) if t is not None and t.requires_grad else None for t in (y, w, b))
            return dy, dw, db, None
        g = g.to(r.dtype)
        dy = y * g
        yg = _rows(dy)  # (N H W, C)
        db = g.new_ones(yg.shape[0]) @ _rows(g)
        dw = None if w is None else r.flatten() @ yg
        inner = yg @ (yg.new_ones(yg.shape[1]) if w is None else w.to(r.dtype))
        torch.mul(g, r, out=dy)
        if w is not None:
            dy.mul_(w[:, None, None])
        return dy.addcmul_(y, inner.view_as(r) * r**3, value=-1).to(y.dtype), dw, db, None


def _rows(y: Tensor) -> Tensor:
    """(N, C, H, W) -> (N H W, C): no copy in channels-last memory."""
    return y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])


def is_number(value: Any) -> bool:
    """Tell numbers from other values; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_eps(name: str, eps: Any) -> None:
    if not is_number(eps) or not 0 < eps < float("inf"):
        raise InputError(f"{name}: eps {eps!r}; a positive number is needed")
