"""Every second pixel with channels of zeros around its own, as one operator on channels-last memory.

It is shortcut A (He et al. 2016, arXiv:1512.03385, section 4.2). Torch's compiler writes its gradient pixel
by pixel, and in another layout than the operators beside it want.
"""

from typing import Any

import torch
from torch import Tensor

from resode.kernels.library import operator

_LAST = torch.channels_last


def fits(x: Tensor) -> bool:
    """Whether the operator takes this input: (N, C, H, W) on the CPU, with an even height and width."""
    return x.device.type == "cpu" and x.dim() == 4 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0


def _subsample(x: Tensor, before: int, after: int) -> Tensor:
    y = _subsample_like(x, before, after).zero_()
    y[:, before : before + x.shape[1]] = x[:, :, ::2, ::2]
    return y


def _subsample_like(x: Tensor, before: int, after: int) -> Tensor:
    shape = (x.shape[0], before + x.shape[1] + after, x.shape[2] // 2, x.shape[3] // 2)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_LAST)


subsample = operator("subsample(Tensor x, int before, int after) -> Tensor", _subsample, _subsample_like)
"""(N, C, H, W) -> (N, before + C + after, H / 2, W / 2)."""


def _subsample_backward(g: Tensor, before: int, after: int) -> Tensor:
    dx = _subsample_backward_like(g, before, after).zero_()
    dx[:, :, ::2, ::2] = g[:, before : g.shape[1] - after]
    return dx


def _subsample_backward_like(g: Tensor, before: int, after: int) -> Tensor:
    shape = (g.shape[0], g.shape[1] - before - after, 2 * g.shape[2], 2 * g.shape[3])
    return torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=_LAST)


subsample_backward = operator(
    "subsample_backward(Tensor g, int before, int after) -> Tensor",
    _subsample_backward,
    _subsample_backward_like,
)
"""(N, before + C + after, H, W) -> (N, C, 2 H, 2 W), with zeros in between."""


def _setup(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    _, ctx.before, ctx.after = inputs


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    return subsample_backward(g, ctx.before, ctx.after), None, None


torch.library.register_autograd("resode::subsample", _backward, setup_context=_setup)
