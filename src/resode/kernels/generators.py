"""A tied twist by its generators in C++, as one operator; `resode.operators.generated` has the formula.

The generators are V_n u = sum_t f_t (B_nt * u). Many n and t share a kernel B_nt of -1, 0 and 1; f_t are
functions of the position. `Generators` applies all V_n, or their adjoint, in one pass over an image. V u is
recomputed in the backward pass, so that u alone is saved.
"""

import ctypes
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resode.kernels import convolution
from resode.kernels.library import library
from resode.operators.generated import plain
from resode.operators.weighted import Pair

DTYPES = (torch.float32, torch.bfloat16)
BYTES = 1 << 22  # of V u computed at once, about: it stays in the processor's cache
_LAST = torch.channels_last
_SIZES = (
    "images", "height", "width", "channels", "rows", "columns", "down", "across", "above", "left", "bottom",
    "right", "stencils", "generators",
)  # fmt: skip
_TABLES = ("entries", "begins", "weights")

Gradients = tuple[Tensor, Tensor, Tensor]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Whether the kernels could be built on this machine."""
    return library() is not None


def supports(u: Tensor, weight: Tensor, twist: Tensor, groups: int) -> bool:
    """Whether the operator takes these; under autocast `u` is already cast."""
    return (
        u.device.type == "cpu"
        and u.dtype in DTYPES
        and (u.dtype == torch.float32 or torch.is_autocast_enabled("cpu"))
        and weight.dtype == torch.float32
        and groups == 1
        and twist.shape[2] > 0
        and available()
    )


# ---------------------------------------------------------------- V and its adjoint


class _Arguments(ctypes.Structure):
    """`struct Generators` of generators.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, ctypes.c_void_p) for name in _TABLES]


class Generators:
    """V for one basis and one image size.

    Args:
        basis: (generators, terms, rows, columns), of -1, 0 and 1.
        factors: f_t at each output pixel, (terms, H', W') fp32.
        stride, padding, dilation: as of a convolution, along rows and columns.
    """

    def __init__(
        self,
        basis: Tensor,
        factors: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        kernels = basis.numpy().astype(np.int32)
        self.entries, self.begins, signs = _stencils(kernels.tobytes(), kernels.shape, tuple(dilation))
        with torch.autocast("cpu", enabled=False):
            self.weights = torch.einsum("nts,tij->ijns", torch.from_numpy(signs), factors).contiguous()
        bottom, right, _ = self.entries.max(0)
        self.pixels, self.count = factors[0].numel(), len(basis)
        self.sizes = (
            *factors.shape[1:], *stride, *padding, bottom, right, len(self.begins) - 1, self.count
        )  # fmt: skip

    def __call__(self, u: Tensor) -> Tensor:
        """V u: (N, C, H, W) -> (N H' W', generators C), of the same dtype."""
        u = u.contiguous(memory_format=_LAST)
        v = u.new_empty(len(u) * self.pixels, self.count * u.shape[1])
        self._run(u, v, adjoint=False)
        return v

    def add_adjoint(self, v: Tensor, u: Tensor) -> None:
        """Add V^T v to u, which is channels-last."""
        assert u.is_contiguous(memory_format=_LAST)
        self._run(u, v.contiguous(), adjoint=True)

    def bytes_per_image(self, u: Tensor) -> int:
        """Bytes of V u for each image of u."""
        return self.pixels * self.count * u.shape[1] * u.element_size()

    def _run(self, u: Tensor, v: Tensor, *, adjoint: bool) -> None:
        loaded = library()
        assert loaded is not None, "the kernels are not built"
        images, channels, height, width = u.shape
        assert u.dtype == v.dtype, "u and v have one dtype"
        assert v.shape == (images * self.pixels, self.count * channels)
        tables = self.entries.ctypes.data, self.begins.ctypes.data, self.weights.data_ptr()
        arguments = _Arguments(images, height, width, channels, *self.sizes, *tables)
        pointers = [ctypes.c_void_p(each.data_ptr()) for each in (u, v)]
        bf16 = u.dtype == torch.bfloat16
        loaded.generators(
            ctypes.byref(arguments), *pointers, int(bf16), int(adjoint), torch.get_num_threads()
        )


@lru_cache
def _stencils(
    basis: bytes, shape: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """The distinct kernels of a basis up to sign (stencils), and the one of each generator and term.

    Returns:
        entries (row, column, sign) of all stencils, the index of each stencil's first entry, and signs
        (generators, terms, stencils).
    """
    kernels = np.frombuffer(basis, np.int32).reshape(-1, *shape[2:])
    stencils: dict[bytes, int] = {}
    entries: list[tuple[int, int, int]] = []
    begins = [0]
    uses: list[tuple[int, int, int]] = []
    for number, kernel in enumerate(kernels):
        nonzero = np.argwhere(kernel)
        if not len(nonzero):
            continue
        sign = int(kernel[tuple(nonzero[0])])
        name = (sign * kernel).tobytes()
        if name not in stencils:
            stencils[name] = len(stencils)
            for row, column in nonzero.tolist():
                entries.append((row * dilation[0], column * dilation[1], sign * int(kernel[row, column])))
            begins.append(len(entries))
        uses.append((number, stencils[name], sign))
    signs = np.zeros((len(kernels), len(stencils)), np.float32)
    for number, stencil, sign in uses:
        signs[number, stencil] = sign
    return np.array(entries, np.int32), np.array(begins, np.int32), signs.reshape(*shape[:2], -1)


# ---------------------------------------------------------------- the operator


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
    """T(u), (N, C, H, W) -> (N, C', H', W'), channels-last, of the dtype of u.

    Args:
        u: fp32 or bf16; parameters are rounded to its dtype.
        weight: (C', C, rows, columns) fp32.
        bias: (C',) fp32, or None.
        twist: the learned numbers (C', C, n) fp32.
        basis: (n, terms, rows, columns).
        factors: (terms, H', W') fp32.
        geometry: stride, padding and dilation, of rows and of columns each: six numbers.
    """
    u = u.contiguous(memory_format=_LAST)
    bias = None if bias is None else bias.to(u.dtype)
    with torch.autocast("cpu", enabled=False):
        y: Tensor = F.conv2d(u, _cast(weight, u), bias, *_pairs(geometry))
        y = y.contiguous(memory_format=_LAST)
        generators, mixing = Generators(basis, factors, *_pairs(geometry)), _mixing(twist, u)
        for some_u, some_y in _batches(generators, u, y):
            _by_pixel(some_y).addmm_(generators(some_u), mixing.T)
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
    """The gradients with respect to u (empty unless `image`), weight and twist."""
    g, u = (each.to(u.dtype).contiguous(memory_format=_LAST) for each in (g, u))
    with torch.autocast("cpu", enabled=False):
        du, dw = _convolution_gradients(g, u, weight, geometry, image)
        generators, mixing = Generators(basis, factors, *_pairs(geometry)), _mixing(twist, u)
        dt = torch.zeros(mixing.shape, dtype=torch.float32)
        for some_u, some_g, some_du in _batches(generators, u, g, du if image else g):
            pixels = _by_pixel(some_g)
            dt += pixels.T @ generators(some_u)
            if image:
                generators.add_adjoint(pixels @ mixing, some_du)
    return du, dw, dt.view(g.shape[1], -1, u.shape[1]).transpose(1, 2).contiguous()


@generated_convolution_backward.register_fake
def _(g: Tensor, u: Tensor, weight: Tensor, twist: Tensor, *others: Any) -> Gradients:
    du = torch.empty_like(u, memory_format=_LAST) if others[-1] else u.new_empty(0)
    return du, weight.new_empty(weight.shape), twist.new_empty(twist.shape)


def _convolution_gradients(
    g: Tensor, u: Tensor, weight: Tensor, geometry: Sequence[int], image: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the convolution W * u with respect to u and W."""
    own_kernel = (
        u.dtype == torch.bfloat16
        and set(geometry) == {1}
        and convolution.supports(u, weight)
        and convolution.available()
    )
    du, dw, _ = torch.ops.aten.convolution_backward(
        g, u, _cast(weight, u), None, *_pairs(geometry), False, [0, 0], 1, [image, not own_kernel, False]
    )
    dw = convolution.kernel_gradient(g, u).permute(2, 3, 0, 1) if own_kernel else dw.float()
    return du.contiguous(memory_format=_LAST) if image else u.new_empty(0), dw.contiguous()


def _pairs(geometry: Sequence[int]) -> tuple[Pair, Pair, Pair]:
    a, b, c, d, e, f = geometry
    return (a, b), (c, d), (e, f)


def _cast(weight: Tensor, u: Tensor) -> Tensor:
    return weight.to(u.dtype).contiguous(memory_format=_LAST)


def _mixing(twist: Tensor, u: Tensor) -> Tensor:
    """The learned numbers as a matrix (C', n C), in the dtype of u."""
    return twist.to(u.dtype).transpose(1, 2).flatten(1)


def _batches(generators: Generators, u: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split along the batch, so that V u of each part stays in the processor's cache."""
    count = max(1, BYTES // generators.bytes_per_image(u))
    yield from zip(*(t.split(count) for t in (u, *others)), strict=True)


def _by_pixel(y: Tensor) -> Tensor:
    """A view (N H W, C)."""
    return y.permute(0, 2, 3, 1).view(-1, y.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, weight, bias, twist, basis, factors, ctx.geometry = inputs
    ctx.save_for_backward(u, weight, bias, twist, basis, factors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    u, weight, bias, twist, basis, factors = ctx.saved_tensors
    if torch.is_grad_enabled():  # for a second derivative: autograd differentiates the plain form
        inputs: tuple[Any, ...] = (u, weight, bias, twist)
        wanted = [each is not None and each.requires_grad for each in inputs]
        leaves = [each for each, w in zip(inputs, wanted, strict=True) if w]
        cast: tuple[Any, ...] = tuple(None if each is None else each.to(g.dtype) for each in inputs)
        y = plain(cast[0], cast[1], cast[2], cast[3], basis.tolist(), factors, (*_pairs(ctx.geometry), 1))
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
