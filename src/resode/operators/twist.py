"""Twist: a convolution whose coefficients are polynomials in the coordinates of the image.

    T(u) = W * u + sum_{1 <= p + q <= d} X^p Y^q (W_pq * u),        degree 1:  W * u + X (Wx * u) + Y (Wy * u)

A plain convolution is a differential operator with constant coefficients, which can diffuse and translate;
with X d/dx + Y d/dy it scales, with X d/dy - Y d/dx it rotates (liuyao12, ResNets with a twist, 2021). X is
the coordinate of the columns, Y that of the rows, both of the *output* pixel, centred: X_{w-1-j} = -X_j
exactly.

How the kernels W_pq are tied is in `resode.operators.ties`.
"""

import contextlib
import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resode.errors import InputError, nearest
from resode.operators import generated
from resode.operators.ties import TIES, Coordinates, Monomial, monomials, tie_basis
from resode.operators.weighted import Geometry, Pair, weighted_convolution

COORDINATES: tuple[str, ...] = get_args(Coordinates)
FORMS = ("auto", "separate", "stacked", "fused", "generated")

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


# ---------------------------------------------------------------- coordinates


def affine_coordinates(height: int, width: int, kind: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """(a, b) of Y_i = (2 i + 1 - a) / b and of X_j = (2 j + 1 - a) / b, for an output of this size.

    centred    both in units of the longer side, so that rotations are rotations on any image
    per-axis   each in units of its own side, from -1/2 to 1/2
    published  j / w - 1/2, which is not centred
    """
    if kind == "published":
        return (height + 1.0, 2.0 * height), (width + 1.0, 2.0 * width)
    longer = max(height, width)
    units = (height, width) if kind == "per-axis" else (longer, longer)
    return (float(height), 2.0 * units[0]), (float(width), 2.0 * units[1])


def coordinates(height: int, width: int, kind: str = "centred", *, like: Tensor) -> tuple[Tensor, Tensor]:
    """X (1, width) and Y (height, 1) of the pixels: device and dtype of `like`, at least float32."""
    (a, b), (c, d) = affine_coordinates(height, width, kind)
    precision = torch.promote_types(like.dtype, torch.float32)
    rows = torch.arange(height, dtype=precision, device=like.device)
    columns = torch.arange(width, dtype=precision, device=like.device)
    return ((2 * columns + (1 - c)) / d)[None, :], ((2 * rows + (1 - a)) / b)[:, None]


# ---------------------------------------------------------------- the operator


class TwistConv2d(nn.Conv2d):
    """T(u) = W * u + b + sum_pq X^p Y^q (W_pq * u), (N, C, H, W) -> (N, C', H', W').

    A convolution (`weight`, `bias`, stride, padding, dilation, groups, padding mode) with one more parameter,
    `twist`: the free coefficients (C', C / groups, n) of the tie, zero at first. The coordinates adapt to the
    size of the image.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as for `torch.nn.Conv2d`; a periodic boundary is the padding mode "circular".
        tie: free, odd, conformal, saddle or mixed.
        degree: of the polynomials, 1 or more.
        coordinates: centred, per-axis or published; see `affine_coordinates`.
        form: how it is computed; the results differ by rounding. "separate": one convolution for each
            kernel; with `twist` zero the result is that of the plain convolution, bit for bit. "stacked": one
            convolution with the kernels stacked. "fused": one convolution of u times the monomials, which are
            recomputed in the backward pass, so that only u is kept. "generated": a convolution, and one with
            1x1 kernels of the tie's generators of u, which are recomputed in the backward pass (see
            `resode.operators.generated`). "auto": generated if that is faster and there is a kernel for it
            (channels-last images on a CPU, except compiled bf16), else stacked. Transforms of torch.func
            (vmap, jvp) work with "separate" only.

    Raises:
        InputError: an unknown tie, degree, coordinates or form; a tie that needs square kernels.
    """

    basis: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        tie: str = "conformal",
        degree: int = 1,
        coordinates: str = "centred",
        form: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        check_twist(tie, degree, coordinates, form, kernel)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.tie, self.degree, self.coordinates, self.form = tie, degree, coordinates, form
        signs = tie_basis(tie, degree, kernel)
        self.signs = signs.tolist()
        self.register_buffer("basis", self.weight.new_tensor(self.signs).view(signs.shape), persistent=False)
        self.twist = nn.Parameter(self.weight.new_zeros(*self.weight.shape[:2], len(signs)))

    @classmethod
    def of(cls, convolution: nn.Conv2d, **options: Any) -> "TwistConv2d":
        """A twisted convolution that shares the parameters of a convolution and equals it at first.

        Args:
            convolution: any `torch.nn.Conv2d`.
            options: `tie`, `degree`, `coordinates`, `form`.
        """
        with torch.device("meta"):
            made = cls(
                convolution.in_channels, convolution.out_channels, convolution.kernel_size,  # type: ignore[arg-type]
                convolution.stride, convolution.padding, convolution.dilation, convolution.groups,  # type: ignore[arg-type]
                convolution.bias is not None, convolution.padding_mode, **options,
            )  # fmt: skip
        weight = convolution.weight
        made.weight, made.bias = weight, convolution.bias
        basis = tie_basis(made.tie, made.degree, convolution.kernel_size)
        made.basis = torch.tensor(basis, device=weight.device, dtype=weight.dtype)
        made.twist = nn.Parameter(weight.new_zeros(made.twist.shape), requires_grad=weight.requires_grad)
        return made.train(convolution.training)

    def reset_parameters(self) -> None:
        """Reset weight and bias like those of a convolution, and the twist to zero."""
        super().reset_parameters()
        if hasattr(self, "twist"):
            nn.init.zeros_(self.twist)

    @property
    def terms(self) -> tuple[Monomial, ...]:
        """The powers (p, q) of X and Y of each kernel."""
        return monomials(self.degree)

    def kernels(self) -> Tensor:
        """The kernels W_pq: (monomials, C', C / groups, rows, columns)."""
        kind = self.twist.device.type
        with contextlib.nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
            return torch.einsum("oin,nthw->toihw", self.twist, self.basis)

    def forward(self, u: Tensor) -> Tensor:
        if u.ndim == 3:
            return self.forward(u[None])[0]
        u, padding = self._padded(u)
        form = self._best(u) if self.form == "auto" else self.form
        result: Tensor = getattr(self, f"_{form}")(u, padding)
        return result

    def _best(self, u: Tensor) -> str:
        """The fastest form for this input, as measured (docs/twist.md)."""
        saves = 2 * len(self.basis) <= len(self.terms) * math.prod(self.kernel_size)
        half = u.dtype == torch.bfloat16 or _autocast(u)
        if not saves or (half and torch.compiler.is_compiling()):
            return "stacked"
        channels_last = u.is_contiguous(memory_format=torch.channels_last)
        kernel = generated.kernel(u, self.weight, self.twist, self.groups) if channels_last else None
        return "stacked" if kernel is None else "generated"

    def _padded(self, u: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The image padded if its boundary is not zero, and the zero padding left to the convolution."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        zeros = self.padding_mode == "zeros"
        if zeros and left == right and top == bottom:
            return u, (top, left)
        mode = "constant" if zeros else self.padding_mode
        return F.pad(u, (left, right, top, bottom), mode=mode), (0, 0)

    def _convolve(self, u: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        return F.conv2d(u, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _separate(self, u: Tensor, padding: tuple[int, int]) -> Tensor:
        """W * u + X (Wx * u) + Y (Wy * u), term by term."""
        y = self._convolve(u, self.weight, self.bias, padding)
        return self._combined(y, [self._convolve(u, w, None, padding) for w in self.kernels()])

    def _stacked(self, u: Tensor, padding: tuple[int, int]) -> Tensor:
        """The same by one convolution with C' (1 + monomials) channels, stacked group by group."""
        kernels = torch.cat((self.weight[None], self.kernels()))
        count, outputs = kernels.shape[:2]
        by_group = kernels.unflatten(1, (self.groups, -1)).transpose(0, 1)
        bias = self.bias
        if bias is not None:
            bias = torch.cat((bias[None], bias.new_zeros(count - 1, outputs)))
            bias = bias.unflatten(1, (self.groups, -1)).transpose(0, 1).flatten()
        x_of, y_of = coordinates(*self._output_size(u, padding), self.coordinates, like=u)
        factors = [x_of**p * y_of**q for p, q in self.terms]
        return weighted_convolution(u, by_group.flatten(0, 2), bias, (), factors, self._geometry(padding))

    def _generated(self, u: Tensor, padding: tuple[int, int]) -> Tensor:
        """One convolution, and one with 1x1 kernels of the tie's generators of u."""
        if not len(self.basis):
            return self._stacked(u, padding)
        x_of, y_of = coordinates(*self._output_size(u, padding), self.coordinates, like=u)
        factors = torch.stack([x_of**p * y_of**q for p, q in self.terms])
        if _autocast(u) and u.dtype != torch.float64:  # autocast does not cast float64
            u = u.to(torch.get_autocast_dtype(u.device.type))
        given, geometry = (u, self.weight, self.bias, self.twist), self._geometry(padding)
        kernel = generated.kernel(u, self.weight, self.twist, self.groups)
        if kernel is not None:
            return kernel.generated_convolution(*given, self.basis, factors, sum(geometry[:3], ()))
        return generated.plain(*given, self.signs, factors, geometry)

    def _combined(self, y: Tensor, terms: list[Tensor]) -> Tensor:
        x_of, y_of = coordinates(y.shape[-2], y.shape[-1], self.coordinates, like=y)
        total = y
        for (p, q), term in zip(self.terms, terms, strict=True):
            total = total + x_of**p * y_of**q * term
        return total.to(y.dtype)

    def _fused(self, u: Tensor, padding: tuple[int, int]) -> Tensor:
        """One convolution of u xi^a eta^b, with coordinates xi, eta of the input pixels.

        An entry of a kernel with offset o reads the input at xi = X + o delta, so that
        X^p (w u)(xi) = sum_a C(p, a) (-o delta)^(p - a) w (xi^a u), and likewise for rows.
        """
        height, width = self._output_size(u, padding)
        (a, b), (c, d) = affine_coordinates(height, width, self.coordinates)
        eta, down = self._on_input(u.shape[2], a, b, 0, padding, u)
        xi, across = self._on_input(u.shape[3], c, d, 1, padding, u)
        kernels = dict(zip(((0, 0), *self.terms), (self.weight, *self.kernels()), strict=True))
        factors = [xi[None, :] ** p * eta[:, None] ** q for p, q in self.terms]
        weights = [self._shifted(kernels, power, across, down) for power in kernels]
        weight = torch.cat(weights, 1).to(self.weight.dtype)
        return weighted_convolution(u, weight, self.bias, factors, (), self._geometry(padding))

    def _geometry(self, padding: tuple[int, int]) -> Geometry:
        return _pair(self.stride), padding, _pair(self.dilation), self.groups

    def _output_size(self, u: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
        sizes = zip(u.shape[2:], padding, self.dilation, self.kernel_size, self.stride, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)
        return height, width

    def _on_input(
        self, size: int, a: float, b: float, axis: int, padding: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The coordinate of the input pixels, and its increment to each entry of a kernel."""
        precision = torch.promote_types(torch.promote_types(like.dtype, self.weight.dtype), torch.float32)
        step = 2 / (self.stride[axis] * b)
        pixels = torch.arange(size, dtype=precision, device=like.device)
        entries = torch.arange(self.kernel_size[axis], dtype=precision, device=like.device)
        return pixels * step + (1 - a) / b, (entries * self.dilation[axis] - padding[axis]) * step

    def _shifted(
        self, kernels: dict[Monomial, Tensor], power: Monomial, across: Tensor, down: Tensor
    ) -> Tensor:
        """The kernel for the product xi^a eta^b u."""
        a, b = power
        total = None
        for (p, q), w in kernels.items():
            if p >= a and q >= b:
                factor = (-across[None, :]) ** (p - a) * (-down[:, None]) ** (q - b)
                term = math.comb(p, a) * math.comb(q, b) * w * factor
                total = term if total is None else total + term
        assert total is not None
        return total

    def extra_repr(self) -> str:
        degree = f", degree={self.degree}" if self.degree > 1 else ""
        plain = super().extra_repr()  # type: ignore[no-untyped-call]
        form = "" if self.form == "auto" else f", form={self.form}"
        return f"{plain}, tie={self.tie}{degree}{form}"


def _autocast(u: Tensor) -> bool:
    return u.device.type != "meta" and torch.is_autocast_enabled(u.device.type)


def _pair(values: tuple[int, ...]) -> Pair:
    first, second = values
    return first, second


def check_twist(
    tie: str, degree: int, coordinates: str, form: str, kernel: tuple[int, ...] | None = None
) -> None:
    """Raise `InputError` for invalid options, with the nearest names."""
    for what, value, known in (
        ("tie", tie, TIES),
        ("coordinates", coordinates, COORDINATES),
        ("form", form, FORMS),
    ):
        if value not in known:
            raise InputError(
                f"twist: unknown {what} {value!r}{nearest(str(value), known)} ({', '.join(known)})"
            )
    if type(degree) is not int or degree < 1:
        raise InputError(f"twist: degree {degree!r}; a positive integer is needed")
    if tie == "mixed" and degree > 1:
        raise InputError("twist: the mixed tie is of degree 1; take conformal, or free")
    if kernel is not None and tie not in ("free", "odd") and len(set(kernel)) > 1:
        raise InputError(
            f"twist: the {tie} tie turns kernels, which have to be square, not {kernel[0]}x{kernel[1]}; "
            "take odd or free"
        )
