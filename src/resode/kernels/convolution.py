"""A 3x3 convolution by matrix units, its kernel gradient in single precision.

Torch's own kernel gradient fills these units badly: it takes longer than the values and the gradient of the
image together. Those two are torch's, but for small images and few channels, which it fills them badly with,
too.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from resode.kernels.library import library

LANES = 16  # channels come in multiples of it
WIDEST = 512 * 512  # of products of channels, beyond which sums take more memory than a processor holds
_LAST = torch.channels_last
SMALL = 144  # pixels of an image, up to which our values take less time than torch's
FEW = 16  # channels, with which they do for any image
# Stride, padding, dilation, transposed, output padding, groups.
_PLAIN = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def available() -> bool:
    """Whether this machine has matrix units for bf16, and the kernel could be built."""
    found = library()
    return found is not None and bool(found.matrix_units_available())


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the operator takes this input and kernel; stride 1, padding 1 and one group are assumed."""
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.dtype == torch.bfloat16
        and x.shape[3] % 2 == 0
        and weight.dtype == torch.float32
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and all(channels % LANES == 0 for channels in weight.shape[:2])
        and weight.shape[0] * weight.shape[1] <= WIDEST
    )


@torch.library.custom_op("resode::convolution", mutates_args=())
def convolution(x: Tensor, weight: Tensor) -> Tensor:
    """(N, C, H, W) bf16 and (C', C, 3, 3) fp32 -> (N, C', H, W) bf16; the kernel is rounded to bf16."""
    x = x.contiguous(memory_format=_LAST)
    if _ours(x, weight):
        return convolve(x, weight)
    y: Tensor = torch.ops.aten.convolution(x, _half(weight), None, *_PLAIN)
    return y.contiguous(memory_format=_LAST)


@convolution.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return x.new_empty(shape).contiguous(memory_format=_LAST)


@torch.library.custom_op("resode::convolution_backward", mutates_args=())
def convolution_backward(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The cotangents of the image, bf16, and of the kernel, (3, 3, C', C) fp32.

    dW[a, b, o, i] = sum_{n, h, w} g[n, o, h, w] x[n, i, h + a - 1, w + b - 1]
    """
    g, x = (each.to(torch.bfloat16).contiguous(memory_format=_LAST) for each in (g, x))
    if _ours(x, weight):
        return convolve(g, weight, adjoint=True), kernel_gradient(g, x)
    dx = torch.ops.aten.convolution_backward(g, x, _half(weight), None, *_PLAIN, [True, False, False])[0]
    return dx.contiguous(memory_format=_LAST), kernel_gradient(g, x)


def convolve(x: Tensor, weight: Tensor, *, adjoint: bool = False) -> Tensor:
    """The values, or of a cotangent that of the image, of channels-last bf16; sums in single precision."""
    outputs = weight.shape[1 if adjoint else 0]
    y = torch.empty((len(x), outputs, *x.shape[2:]), dtype=x.dtype, memory_format=_LAST)
    _call("convolution", x, outputs, weight.contiguous(), y, int(adjoint))
    return y


def kernel_gradient(g: Tensor, x: Tensor) -> Tensor:
    """(3, 3, C', C) fp32, of channels-last bf16 (N, C', H, W) and (N, C, H, W)."""
    dw = torch.empty(3, 3, g.shape[1], x.shape[1], dtype=torch.float32)
    _call("kernel_gradient", x, g.shape[1], g, dw)
    return dw


def _call(name: str, x: Tensor, outputs: int, first: Tensor, second: Tensor, *options: int) -> None:
    found = library()
    assert found is not None, "the kernels are not built"
    assert found.matrix_units_available(), "there are no matrix units"
    images, inputs, height, width = x.shape
    sizes = [ctypes.c_int64(n) for n in (images, height, width, inputs, outputs)]
    pointers = [ctypes.c_void_p(each.data_ptr()) for each in (x, first, second)]
    getattr(found, name)(*sizes, *pointers, *options, torch.get_num_threads())


@convolution_backward.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=_LAST), weight.new_empty(3, 3, *weight.shape[:2])


def _ours(x: Tensor, weight: Tensor) -> bool:
    return x.shape[2] * x.shape[3] <= SMALL or max(weight.shape[:2]) <= FEW


def _half(weight: Tensor) -> Tensor:
    return weight.to(torch.bfloat16).contiguous(memory_format=_LAST)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    dx, dw = convolution_backward(g, x, weight)
    return dx, dw.permute(2, 3, 0, 1)


convolution.register_autograd(_backward, setup_context=_setup)
