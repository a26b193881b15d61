"""A 3x3 convolution whose kernel gradient is taken by matrix units, in single precision.

Torch's own kernel gradient of small images fills these units badly: for 64 channels and 8x8 pixels it takes
half of all convolutions' time. Values and the gradient of the image are torch's.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from resode.kernels.library import library

LANES = 16  # channels come in multiples of it
WIDEST = 128 * 128  # of products of channels, beyond which torch's own gradient is as fast
_LAST = torch.channels_last
_PLAIN = (
    [1, 1],
    [1, 1],
    [1, 1],
    False,
    [0, 0],
    1,
)  # stride, padding, dilation, transposed, output padding, groups


def available() -> bool:
    """Whether this machine has matrix units for bf16, and the kernel could be built."""
    found = library()
    return found is not None and bool(found.kernel_gradient_available())


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
    back = torch.ops.aten.convolution_backward(g, x, _half(weight), None, *_PLAIN, [True, False, False])
    dw = weight.new_empty(3, 3, *weight.shape[:2])
    found = library()
    assert found is not None, "the kernels are not built"
    assert available(), "there are no matrix units"
    images, inputs, height, width = x.shape
    sizes = [ctypes.c_int64(n) for n in (images, height, width, inputs, weight.shape[0])]
    pointers = [ctypes.c_void_p(each.data_ptr()) for each in (x, g, dw)]
    found.kernel_gradient(*sizes, *pointers, torch.get_num_threads())
    return back[0].contiguous(memory_format=_LAST), dw


@convolution_backward.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=_LAST), weight.new_empty(3, 3, *weight.shape[:2])


def _half(weight: Tensor) -> Tensor:
    return weight.to(torch.bfloat16).contiguous(memory_format=_LAST)


def _setup(ctx, inputs: Sequence[Tensor], output: Tensor) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    dx, dw = convolution_backward(g, x, weight)
    return dx, dw.permute(2, 3, 0, 1)


convolution.register_autograd(_backward, setup_context=_setup)
