"""A 3x3 convolution in bf16 by AMX tiles or AVX-512 BF16 vectors, its kernel gradient in single precision.

Torch's kernel gradient makes poor use of AMX: it takes longer than the forward pass and the image gradient
together. Those two are torch's own where it is faster: with stride 1, on large images of more than a few
channels (with AMX), and for many channels (with AVX-512 BF16).
"""

import functools
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from resode.kernels.library import call_kernel, library, register_operator
from resode.kernels.nodes import arguments, example, has_static_shape

NO_BF16 = "this processor has neither AMX nor AVX-512 BF16, or the kernels could not be built"
LANES = 16  # the number of channels is a multiple of it
FEW_INPUTS = 5  # so few input channels need not be, if the image gradient is not needed
MOST_WEIGHTS = 512 * 512  # products of channels; beyond this the sums do not fit in the cache
SMALL = 144  # pixels of an image; up to here our forward pass beats torch's with AMX
FEW_CHANNELS = {"AMX": 16, "AVX-512 BF16": 64}  # up to here it does so on images of any size
_LAST = torch.channels_last


@functools.cache
def bf16_instructions() -> str | None:
    """What multiplies bf16 here: "AMX" (tiles), "AVX-512 BF16" (vectors), or None.

    None also where the kernels could not be built.
    """
    loaded = library()
    return None if loaded is None else (None, "AVX-512 BF16", "AMX")[loaded.bf16_instructions()]


def available() -> bool:
    """Whether this processor multiplies bf16 and the kernels could be built."""
    return bf16_instructions() is not None


def supports(x: Tensor, weight: Tensor, stride: int = 1) -> bool:
    """Whether the operator takes this kernel, and this input cast to bf16; assumes padding 1, one group."""
    outputs, inputs = weight.shape[:2]
    few = inputs <= FEW_INPUTS and stride == 1 and not x.requires_grad
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
        and inputs * outputs <= MOST_WEIGHTS
    )


def _convolution(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    x = x.contiguous(memory_format=_LAST)
    if _is_faster(x, weight, stride):
        return convolve(x, weight, stride)
    y: Tensor = torch.ops.aten.convolution(x, _to_bf16(weight), None, *_geometry(stride))
    return y.contiguous(memory_format=_LAST)


def _convolution_fake(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    shape = (x.shape[0], weight.shape[0], x.shape[2] // stride, x.shape[3] // stride)
    return x.new_empty(shape).contiguous(memory_format=_LAST)


convolution = register_operator(
    "convolution(Tensor x, Tensor weight, int stride=1) -> Tensor", _convolution, _convolution_fake
)
"""(N, C, H, W) bf16 and (C', C, 3, 3) fp32 -> (N, C', H / s, W / s) bf16; the kernel is rounded to bf16."""


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, image: bool
) -> tuple[Tensor, Tensor]:
    g, x = (each.to(torch.bfloat16).contiguous(memory_format=_LAST) for each in (g, x))
    dw = kernel_gradient(g, x, stride)
    if not image:
        return x.new_empty(0), dw
    if _is_faster(x, weight, stride):
        return convolve(g, weight, stride, adjoint=True), dw
    mask = [True, False, False]  # the image gradient alone
    dx = torch.ops.aten.convolution_backward(g, x, _to_bf16(weight), None, *_geometry(stride), mask)[0]
    return dx.contiguous(memory_format=_LAST), dw


def _convolution_backward_fake(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, image: bool
) -> tuple[Tensor, Tensor]:
    dw = weight.new_empty(3, 3, *weight.shape[:2])
    return torch.empty_like(x, memory_format=_LAST) if image else x.new_empty(0), dw


convolution_backward = register_operator(
    "convolution_backward(Tensor g, Tensor x, Tensor weight, int stride, bool image) -> (Tensor, Tensor)",
    _convolution_backward,
    _convolution_backward_fake,
)
"""The gradients with respect to the image, bf16 (empty if not `image`), and the kernel, (3, 3, C', C) fp32.

dW[a, b, o, i] = sum_{n, h, w} g[n, o, h, w] x[n, i, s h + a - 1, s w + b - 1]
"""


def convolve(x: Tensor, weight: Tensor, stride: int = 1, *, adjoint: bool = False) -> Tensor:
    """The convolution or its adjoint (g -> image gradient) of channels-last bf16; sums in fp32."""
    images, inputs, height, width = x.shape
    outputs = weight.shape[1 if adjoint else 0]
    shape = (height * stride, width * stride) if adjoint else (height // stride, width // stride)
    y = torch.empty((images, outputs, *shape), dtype=x.dtype, memory_format=_LAST)
    sizes = (images, *(shape if adjoint else (height, width)), inputs, outputs, stride, int(adjoint))
    strides = weight.stride()
    strides = (strides[1], strides[0], *strides[2:]) if adjoint else strides
    assert available(), NO_BF16
    assert x.dtype == torch.bfloat16
    call_kernel("convolution", "lllllli" + "ppp" + "llll", *sizes, x, y, weight, *strides)
    return y


def kernel_gradient(g: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """(3, 3, C', C) fp32, of channels-last bf16 (N, C', H / s, W / s) and (N, C, H, W)."""
    images, inputs, height, width = x.shape
    outputs = g.shape[1]
    dw = torch.empty(3, 3, outputs, inputs, dtype=torch.float32)
    assert available(), NO_BF16
    assert x.dtype == g.dtype == torch.bfloat16
    sizes = (images, height, width, inputs, outputs, stride)
    call_kernel("kernel_gradient", "llllll" + "ppp", *sizes, x, g, dw)
    return dw


def _is_faster(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether `convolve` is faster than torch for these (x the larger image), as measured."""
    instructions = bf16_instructions()
    assert instructions is not None, NO_BF16
    small = instructions == "AMX" and x.shape[2] * x.shape[3] <= SMALL
    return stride == 2 or small or max(weight.shape[:2]) <= FEW_CHANNELS[instructions]


def _geometry(stride: int) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    """Stride, padding, dilation, transposed, output padding, groups."""
    return [stride, stride], [1, 1], [1, 1], False, [0, 0], 1


def _to_bf16(weight: Tensor) -> Tensor:
    return weight.to(torch.bfloat16).contiguous(memory_format=_LAST)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, weight, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, None]:
    x, weight = ctx.saved_tensors
    image = ctx.needs_input_grad[0]
    dx, dw = convolution_backward(g, x, weight, ctx.stride, image)
    return dx if image else None, dw.permute(2, 3, 0, 1), None


torch.library.register_autograd("resode::convolution", _backward, setup_context=_setup)


# ---------------------------------------------------------------- in a graph

_CONVOLUTIONS = (F.conv2d, torch.conv2d)
_ARGUMENTS = {
    "input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1
}  # fmt: skip


def replace(graph: fx.Graph) -> int:
    """Replace each 3x3 convolution in bf16 whose kernel is trained; returns their number."""
    nodes = [node for node in graph.nodes if _is_supported(node)]
    if not nodes or not available():  # which builds the kernels
        return 0
    for node in nodes:
        given = arguments(node, _ARGUMENTS)
        x, value = given["input"], example(given["input"])
        if value is not None and value.dtype != torch.bfloat16:
            with graph.inserting_before(node):
                x = graph.call_method("to", (x, torch.bfloat16))
        node.target, node.kwargs = convolution, {}
        node.args = (x, given["weight"], _single(given["stride"]))
    return len(nodes)


def _is_supported(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _CONVOLUTIONS:
        return False
    given = arguments(node, _ARGUMENTS)
    x, weight, y = example(given["input"]), example(given["weight"]), example(node)
    stride, padding, dilation = (_single(given[name]) for name in ("stride", "padding", "dilation"))
    return (
        x is not None
        and weight is not None
        and y is not None
        and y.dtype == torch.bfloat16
        and given["bias"] is None
        and stride is not None
        and (padding, dilation, given["groups"]) == (1, 1, 1)
        and weight.requires_grad
        and has_static_shape(x)
        and supports(x, weight, stride)
    )


def _single(value: Any) -> int | None:
    """The number that holds for rows and columns; None where they differ, or it is a word ("same")."""
    first = value[0] if isinstance(value, tuple | list) and len(set(value)) == 1 else value
    return first if isinstance(first, int) else None
