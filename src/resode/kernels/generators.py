"""The generators of a tied twist, v_n = sum_t f_t (B_nt * u), and their adjoint, in one pass over an image.

B_nt are kernels of -1, 0 and 1 that many n and t share; f_t are functions of the place.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resode.kernels.library import library

DTYPES = (torch.float32, torch.bfloat16)
_LAST = torch.channels_last
_SIZES = (
    "images", "height", "width", "channels", "rows", "columns", "down", "across", "above", "left", "bottom",
    "right", "stencils", "generators",
)  # fmt: skip
_TABLES = ("entries", "begins", "weights")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Whether the kernels could be built on this machine."""
    return library() is not None


class _Call(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, ctypes.c_void_p) for name in _TABLES]


class Generators:
    """V for one basis, on one size of images.

    Args:
        basis: (generators, terms, rows, columns), of -1, 0 and 1.
        factors: (terms, rows, columns) of the result, fp32.
        stride, padding, dilation: of rows and of columns, as of a convolution.
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
        """(N, C, H, W) -> (N H' W', generators C), of the same type."""
        u = u.contiguous(memory_format=_LAST)
        v = u.new_empty(len(u) * self.pixels, self.count * u.shape[1])
        self._run(u, v, adjoint=False)
        return v

    def add_adjoint(self, v: Tensor, u: Tensor) -> None:
        """U += V^T v; u is channels-last."""
        assert u.is_contiguous(memory_format=_LAST)
        self._run(u, v.contiguous(), adjoint=True)

    def bytes_each(self, u: Tensor) -> int:
        """Of V u, for each image."""
        return self.pixels * self.count * u.shape[1] * u.element_size()

    def _run(self, u: Tensor, v: Tensor, *, adjoint: bool) -> None:
        found = library()
        assert found is not None, "the kernels are not built"
        images, channels, height, width = u.shape
        assert u.dtype == v.dtype, "images and fields are of one type"
        assert v.shape == (images * self.pixels, self.count * channels)
        tables = self.entries.ctypes.data, self.begins.ctypes.data, self.weights.data_ptr()
        call = _Call(images, height, width, channels, *self.sizes, *tables)
        pointers = [ctypes.c_void_p(each.data_ptr()) for each in (u, v)]
        half = u.dtype == torch.bfloat16
        found.generators(ctypes.byref(call), *pointers, int(half), int(adjoint), torch.get_num_threads())


@lru_cache
def _stencils(
    basis: bytes, shape: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """The distinct kernels, up to sign, and which of them each generator has in each term.

    Returns:
        Their entries (row, column, sign), where those of each begin, and signs (generators, terms, stencils).
    """
    kernels = np.frombuffer(basis, np.int32).reshape(-1, *shape[2:])
    stencils: dict[bytes, int] = {}
    entries: list[tuple[int, int, int]] = []
    begins = [0]
    found: list[tuple[int, int, int]] = []
    for number, kernel in enumerate(kernels):
        places = np.argwhere(kernel)
        if not len(places):
            continue
        sign = int(kernel[tuple(places[0])])
        name = (sign * kernel).tobytes()
        if name not in stencils:
            stencils[name] = len(stencils)
            for row, column in places.tolist():
                entries.append((row * dilation[0], column * dilation[1], sign * int(kernel[row, column])))
            begins.append(len(entries))
        found.append((number, stencils[name], sign))
    signs = np.zeros((len(kernels), len(stencils)), np.float32)
    for number, stencil, sign in found:
        signs[number, stencil] = sign
    return np.array(entries, np.int32), np.array(begins, np.int32), signs.reshape(*shape[:2], -1)
