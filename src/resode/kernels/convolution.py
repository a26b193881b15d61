"""A 3x3 convolution of bf16 by matrix units or vectors, its kernel gradient in single precision.

Torch's own kernel gradient fills matrix units badly: it takes longer than the values and the gradient of the
image together. Those two are torch's where it is the faster one: with a stride of one, for large images of
more than a few channels; and by vectors for many channels.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from resode.kernels.library import call, library, operator

NONE = "this processor has neither matrix units nor vectors for bf16"
LANES = 16  # channels come in multiples of it
LEAST = 5  # channels, up to which an image may have fewer, if its own gradient is not asked for
WIDEST = 512 * 512  # of products of channels, beyond which sums take more memory than a processor holds
_LAST = torch.channels_last
SMALL = 144  # pixels of an image, up to which our values take less time than torch's by matrix units
FEW = {"matrix units": 16, "vectors": 64}  # channels, with which they do for any image


@functools.cache
def products() -> str | None:
    """What multiplies bf16 here: "matrix units" (AMX), "vectors" (AVX-512 BF16), or None.

    The latter also where the kernels could not be built.
    """
    found = library()
    return None if found is None else (None, "vectors", "matrix units")[found.makes_products()]


def available() -> bool:
    """Whether there is anything that multiplies bf16."""
    return products() is not None


def fits(x: Tensor, weight: Tensor, stride: int = 1) -> bool:
    """Whether the operator takes this input, made bf16, and kernel; padding 1 and one group are assumed."""
    outputs, inputs = weight.shape[:2]
    few = inputs <= LEAST and stride == 1 and not x.requires_grad
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and len(x) > 0
        and x.dtype in (torch.bfloat16, torch.float32)
        and stride in (1, 2)
        and x.shape[3] % (2 * stride) == 0
        and x.shape[2] % stride == 0
        and weight.dtype == torch.float32
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and outputs % LANES == 0
        and (inputs % LANES == 0 or few)
        and inputs * outputs <= WIDEST
    )


def _convolution(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    x = x.contiguous(memory_format=_LAST)
    if _ours(x, weight, stride):
        return convolve(x, weight, stride)
    y: Tensor = torch.ops.aten.convolution(x, _half(weight), None, *_form(stride))
    return y.contiguous(memory_format=_LAST)


def _convolution_like(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    shape = (x.shape[0], weight.shape[0], x.shape[2] // stride, x.shape[3] // stride)
    return x.new_empty(shape).contiguous(memory_format=_LAST)


convolution = operator(
    "convolution(Tensor x, Tensor weight, int stride=1) -> Tensor", _convolution, _convolution_like
)
"""(N, C, H, W) bf16 and (C', C, 3, 3) fp32 -> (N, C', H / s, W / s) bf16; the kernel is rounded to bf16."""


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, image: bool, other: Tensor | None
) -> tuple[Tensor, Tensor]:
    g, x = (each.to(torch.bfloat16).contiguous(memory_format=_LAST) for each in (g, x))
    dw = kernel_gradient(g, x, stride)
    if not image:
        return x.new_empty(0), dw
    other = None if other is None else other.to(torch.bfloat16).contiguous(memory_format=_LAST)
    if _ours(x, weight, stride):
        return convolve(g, weight, stride, adjoint=True, other=other), dw
    dx = torch.ops.aten.convolution_backward(g, x, _half(weight), None, *_form(stride), [True, False, False])[
        0
    ]
    dx = dx.contiguous(memory_format=_LAST)
    return (dx if other is None else dx.add_(other)), dw


def _convolution_backward_like(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, image: bool, other: Tensor | None
) -> tuple[Tensor, Tensor]:
    dw = weight.new_empty(3, 3, *weight.shape[:2])
    return torch.empty_like(x, memory_format=_LAST) if image else x.new_empty(0), dw


convolution_backward = operator(
    "convolution_backward(Tensor g, Tensor x, Tensor weight, int stride, bool image, Tensor? other)"
    " -> (Tensor, Tensor)",
    _convolution_backward,
    _convolution_backward_like,
)
"""The cotangents of the image, bf16 (empty if not `image`), and of the kernel, (3, 3, C', C) fp32.

dW[a, b, o, i] = sum_{n, h, w} g[n, o, h, w] x[n, i, s h + a - 1, s w + b - 1]

`other` is added to the first, as another branch of a network has it.
"""


def convolve(
    x: Tensor, weight: Tensor, stride: int = 1, *, adjoint: bool = False, other: Tensor | None = None
) -> Tensor:
    """The values, or of a cotangent that of the image, of channels-last bf16; sums in single precision.

    `other`, of the result's shape, is added before it is rounded.
    """
    images, inputs, height, width = x.shape
    outputs = weight.shape[1 if adjoint else 0]
    shape = (height * stride, width * stride) if adjoint else (height // stride, width // stride)
    y = torch.empty((images, outputs, *shape), dtype=x.dtype, memory_format=_LAST)
    sizes = (images, *(shape if adjoint else (height, width)), inputs, outputs, stride)
    strides = weight.stride()
    each = (strides[1], strides[0], *strides[2:]) if adjoint else strides
    assert available(), NONE
    assert x.dtype == torch.bfloat16
    call("convolution", "lllllli" + "pppp" + "llll", *sizes, int(adjoint), x, other, y, weight, *each)
    return y


def kernel_gradient(g: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """(3, 3, C', C) fp32, of channels-last bf16 (N, C', H / s, W / s) and (N, C, H, W)."""
    images, inputs, height, width = x.shape
    outputs = g.shape[1]
    dw = torch.empty(3, 3, outputs, inputs, dtype=torch.float32)
    assert available(), NONE
    assert x.dtype == g.dtype == torch.bfloat16
    call("kernel_gradient", "llllll" + "ppp", images, height, width, inputs, outputs, stride, x, g, dw)
    return dw


def _ours(x: Tensor, weight: Tensor, stride: int) -> bool:
    found = products()
    assert found is not None, NONE
    small = found == "matrix units" and x.shape[2] * x.shape[3] <= SMALL
    return stride == 2 or small or max(weight.shape[:2]) <= FEW[found]


def _form(stride: int) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    """Stride, padding, dilation, transposed, output padding, groups."""
    return [stride, stride], [1, 1], [1, 1], False, [0, 0], 1


def _half(weight: Tensor) -> Tensor:
    return weight.to(torch.bfloat16).contiguous(memory_format=_LAST)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, weight, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, None]:
    x, weight = ctx.saved_tensors
    image = ctx.needs_input_grad[0]
    dx, dw = convolution_backward(g, x, weight, ctx.stride, image, None)
    return dx if image else None, dw.permute(2, 3, 0, 1), None


torch.library.register_autograd("resode::convolution", _backward, setup_context=_setup)
