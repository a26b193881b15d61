"""Twist: a convolution whose coefficients are polynomials in the coordinates of the image.

    T(u) = W * u + sum_{1 <= p + q <= d} X^p Y^q (W_pq * u),        degree 1:  W * u + X (Wx * u) + Y (Wy * u)

A plain convolution is a differential operator with constant coefficients, which can diffuse and translate;
with X d/dx + Y d/dy it scales, with X d/dy - Y d/dx it rotates (liuyao12, ResNets with a twist, 2021). X is
the coordinate of the columns, Y that of the rows, both of the *output* pixel, centred: X_{w-1-j} = -X_j
exactly.

How the kernels W_pq are tied, with R = rot90 on axes (2, 3) and the parity P W = W.flip(2, 3) = R^2 W:

    free       all are learned
    odd        P W_pq = (-1)^(p+q) W_pq: what commutes with a rotation by 180 degrees
    conformal  W_qp = (-1)^p R W_pq: what commutes with a rotation by 90 degrees where R W = W. In degree 1
               Wx ~ a d/dx + b d/dy gives a (X d/dx + Y d/dy) + b (X d/dy - Y d/dx): scaling and rotation
    saddle     W_qp = -(-1)^p R W_pq: in degree 1 the trace-free strain [[a, b], [b, -a]] alone
    mixed      antisymmetric along each axis, Wy = R^-1 Wx (degree 1): the corner kernel d2/dxdy alone

A tie equates entries of the kernels up to sign, or makes them zero; one number is learned and stored for each
class of equal entries.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from resode.errors import InputError, nearest

TIES = ("free", "odd", "conformal", "saddle", "mixed")
COORDINATES = ("centred", "per-axis", "published")
FORMS = ("auto", "separate", "stacked", "fused")

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Monomial = tuple[int, int]  # the powers of X and Y
Entries = dict[Monomial, NDArray[np.int64]]  # of the kernels (rows, columns), counted from 1, with signs


def monomials(degree: int) -> tuple[Monomial, ...]:
    """(p, q) with 1 <= p + q <= degree: (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), ..."""
    return tuple((total - q, q) for total in range(1, degree + 1) for q in range(total + 1))


# ---------------------------------------------------------------- ties


def _rot90(kernel: NDArray[np.int64], times: int = 1) -> NDArray[np.int64]:
    return np.rot90(kernel, times)


def _odd(kernels: Entries) -> Entries:
    return {(p, q): (-1) ** (p + q) * _rot90(w, 2) for (p, q), w in kernels.items()}


def _conformal(kernels: Entries) -> Entries:
    return {(q, p): (-1) ** p * _rot90(w) for (p, q), w in kernels.items()}


def _saddle(kernels: Entries) -> Entries:
    return {pq: -w for pq, w in _conformal(kernels).items()}


def _mixed(kernels: Entries) -> Entries:
    return {(1, 0): _rot90(kernels[0, 1]), (0, 1): _rot90(kernels[1, 0], -1)}


def _antisymmetric(axis: int) -> Callable[[Entries], Entries]:
    return lambda kernels: {pq: -np.flip(w, axis) for pq, w in kernels.items()}


_INVARIANT_UNDER: dict[str, tuple[Callable[[Entries], Entries], ...]] = {
    "free": (),
    "odd": (_odd,),
    "conformal": (_conformal,),
    "saddle": (_saddle,),
    "mixed": (_antisymmetric(0), _antisymmetric(1), _mixed),
}


@lru_cache
def tie_basis(tie: str, degree: int, kernel: tuple[int, int]) -> NDArray[np.float32]:
    """What each learned number is in the kernels: (numbers, monomials, rows, columns), of -1, 0 and 1.

    A tie is a set of maps G, signed permutations of all entries, under which the kernels are invariant. Each
    class of entries that the maps lead to one another is one number; a class that they lead to its own
    negative is zero.
    """
    terms = monomials(degree)
    entries = np.arange(1, len(terms) * math.prod(kernel) + 1).reshape(len(terms), *kernel)
    joined: list[list[tuple[int, int]]] = [[] for _ in range(entries.size + 1)]
    for image_of in _INVARIANT_UNDER[tie]:
        image = image_of(dict(zip(terms, entries, strict=True)))
        for number, term in enumerate(terms):
            for a, b in zip(entries[number].flatten().tolist(), image[term].flatten().tolist(), strict=True):
                sign = 1 if b > 0 else -1
                joined[a].append((abs(b), sign))
                joined[abs(b)].append((a, sign))
    rows, seen = [], set[int]()
    for first in range(1, entries.size + 1):
        if first in seen:
            continue
        signs, waiting, zero = {first: 1}, [first], False
        while waiting:
            a = waiting.pop()
            for b, sign in joined[a]:
                if b not in signs:
                    signs[b] = sign * signs[a]
                    waiting.append(b)
                zero |= signs[b] != sign * signs[a]
        seen |= signs.keys()
        if not zero:
            row = np.zeros(entries.size, dtype=np.float32)
            row[[entry - 1 for entry in signs]] = list(signs.values())
            rows.append(row)
    return np.array(rows, dtype=np.float32).reshape(-1, *entries.shape)


# ---------------------------------------------------------------- coordinates


def affine_coordinates(height: int, width: int, kind: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """(a, b) of Y_i = (2 i + 1 - a) / b and of X_j = (2 j + 1 - a) / b, for an output of this size.

    centred    both in units of the longer side, so that a rotation is one on any image
    per-axis   each in units of its own side, from -1/2 to 1/2
    published  j / w - 1/2, which is not centred
    """
    if kind == "published":
        return (height + 1.0, 2.0 * height), (width + 1.0, 2.0 * width)
    longer = max(height, width)
    units = (height, width) if kind == "per-axis" else (longer, longer)
    return (float(height), 2.0 * units[0]), (float(width), 2.0 * units[1])


def coordinates(height: int, width: int, kind: str = "centred", *, like: Tensor) -> tuple[Tensor, Tensor]:
    """X (1, width) and Y (height, 1) of the pixels, on the device and in the precision of `like`.

    In float32 at least.
    """
    (a, b), (c, d) = affine_coordinates(height, width, kind)
    precision = torch.promote_types(like.dtype, torch.float32)
    rows = torch.arange(height, dtype=precision, device=like.device)
    columns = torch.arange(width, dtype=precision, device=like.device)
    return ((2 * columns + (1 - c)) / d)[None, :], ((2 * rows + (1 - a)) / b)[:, None]


# ---------------------------------------------------------------- the operator


class TwistConv2d(nn.Conv2d):
    """T(u) = W * u + b + sum_pq X^p Y^q (W_pq * u), (N, C, H, W) -> (N, C', H', W').

    A convolution like any other (`weight`, `bias`, stride, padding, dilation, groups, padding mode), and
    `twist`: the numbers (C', C / groups, n) that the tie leaves free, zero at first. It knows no image size;
    the coordinates are those of whatever comes.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as of `torch.nn.Conv2d`; a periodic boundary is the padding mode "circular".
        tie: free, odd, conformal, saddle or mixed.
        degree: of the polynomials, 1 or more.
        coordinates: centred, per-axis or published; see `affine_coordinates`.
        form: how it is computed; the results differ by rounding. "separate": one convolution for each
            kernel, so that with `twist` zero the result is that of the plain convolution, bit for bit.
            "stacked": one convolution with the kernels stacked. "fused": one convolution of u times the
            monomials, made again in the backward pass, so that u alone is kept. "auto": stacked. The
            transforms of torch.func (vmap, jvp) take "separate" only.

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
        basis = torch.tensor(
            tie_basis(tie, degree, kernel), device=self.weight.device, dtype=self.weight.dtype
        )
        self.register_buffer("basis", basis, persistent=False)
        self.twist = nn.Parameter(self.weight.new_zeros(*self.weight.shape[:2], len(basis)))

    @classmethod
    def of(cls, convolution: nn.Conv2d, **options: Any) -> "TwistConv2d":
        """A twist with the parameters of a convolution (its own, not copies), equal to it at first.

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
        """Weight and bias as of a convolution; the twist is zero."""
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
        form = "stacked" if self.form == "auto" else self.form
        result: Tensor = getattr(self, f"_{form}")(u, padding)
        return result

    def _padded(self, u: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The image with its boundary where that is not zero, and the zeros that are still to be added."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        zeros = self.padding_mode == "zeros"
        if zeros and left == right and top == bottom:
            return u, (top, left)
        mode = "constant" if zeros else self.padding_mode
        return F.pad(u, (left, right, top, bottom), mode=mode), (0, 0)

    def _convolve(self, u: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        return F.conv2d(u, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _separate(self, u: Tensor, padding: tuple[int, int]) -> Tensor:
        """W * u + X (Wx * u) + Y (Wy * u), as it is written."""
        y = self._convolve(u, self.weight, self.bias, padding)
        return self._combined(y, [self._convolve(u, w, None, padding) for w in self.kernels()])

    def _stacked(self, u: Tensor, padding: tuple[int, int]) -> Tensor:
        """The same, by one convolution of C' (1 + monomials) channels, stacked group by group."""
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

    def _combined(self, y: Tensor, terms: list[Tensor]) -> Tensor:
        x_of, y_of = coordinates(y.shape[-2], y.shape[-1], self.coordinates, like=y)
        total = y
        for (p, q), term in zip(self.terms, terms, strict=True):
            total = total + x_of**p * y_of**q * term
        return total.to(y.dtype)

    def _fused(self, u: Tensor, padding: tuple[int, int]) -> Tensor:
        """One convolution of u xi^a eta^b, the coordinates taken on the input.

        A kernel's entry with the offset o reads the input where xi = X + o delta, so that
        X^p (w u)(xi) = sum_a C(p, a) (-o delta)^(p - a) w (xi^a u), and rows alike.
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

    def _geometry(self, padding: tuple[int, int]) -> "Geometry":
        return _pair(self.stride), padding, _pair(self.dilation), self.groups

    def _output_size(self, u: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
        sizes = zip(u.shape[2:], padding, self.dilation, self.kernel_size, self.stride, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)
        return height, width

    def _on_input(
        self, size: int, a: float, b: float, axis: int, padding: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The coordinate on the input pixels, and by how much it grows to each entry of a kernel."""
        precision = torch.promote_types(torch.promote_types(like.dtype, self.weight.dtype), torch.float32)
        step = 2 / (self.stride[axis] * b)
        pixels = torch.arange(size, dtype=precision, device=like.device)
        entries = torch.arange(self.kernel_size[axis], dtype=precision, device=like.device)
        return pixels * step + (1 - a) / b, (entries * self.dilation[axis] - padding[axis]) * step

    def _shifted(
        self, kernels: dict[Monomial, Tensor], power: Monomial, across: Tensor, down: Tensor
    ) -> Tensor:
        """The kernel that the product xi^a eta^b u is convolved with."""
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
        return f"{plain}, tie={self.tie}{degree}"


Pair = tuple[int, int]
Geometry = tuple[Pair, Pair, Pair, int]  # stride, padding, dilation, groups


def _spread(u: Tensor, factors: Sequence[Tensor], groups: int) -> Tensor:
    """The channels u, f_1 u, f_2 u, ... of each group, side by side; the adjoint of `_gather`."""
    if not factors:
        return u
    by_group = u.unflatten(1, (groups, -1))
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        parts = [by_group, *((by_group * factor).to(u.dtype) for factor in factors)]
        return torch.cat(parts, 2).flatten(1, 2)
    same = factors[0].new_ones(u.shape[2:])
    every = torch.stack([same, *(factor.expand_as(same) for factor in factors)])
    channels_last = u.is_contiguous(memory_format=torch.channels_last)
    result = torch.empty(
        (u.shape[0], u.shape[1] * len(every), *u.shape[2:]), dtype=u.dtype, device=u.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )  # fmt: skip
    torch.mul(by_group[:, :, None], every[:, None], out=result.unflatten(1, (groups, len(every), -1)))
    return result


def _gather(z: Tensor, factors: Sequence[Tensor], groups: int) -> Tensor:
    """z_0 + f_1 z_1 + f_2 z_2 + ... of the channels z_0, z_1, ... of each group."""
    if not factors:
        return z
    count = len(factors) + 1
    by_group = z.unflatten(1, (groups, count, -1)) if groups > 1 else z.unflatten(1, (count, -1))
    total, *others = by_group.unbind(-4)
    for factor, part in zip(factors, others, strict=True):
        total = torch.addcmul(total, factor, part)
    y: Tensor = total.to(z.dtype)
    return y.flatten(1, 2) if groups > 1 else y


def _weighted(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    geometry: Geometry,
) -> Tensor:
    """A convolution of u times the factors `before`; its outputs times the factors `after`, added up."""
    groups = geometry[-1]
    return _gather(F.conv2d(_spread(u, before, groups), weight, bias, *geometry), after, groups)


def weighted_convolution(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    geometry: Geometry,
) -> Tensor:
    """A convolution of u times functions of the place, its outputs times functions of the place, added up.

        y = sum_mn a_m W_mn * (b_n u),        a_0 = b_0 = 1

    u alone is kept for the backward pass, which makes the products again.

    Args:
        u: (N, C, H, W).
        weight: the kernels, group by group those of m = 0, 1, ... one below the other, and of n = 0, 1, ...
            side by side.
        bias: or None, of every output of the convolution.
        before: b_1, b_2, ..., each of a shape that is broadcast to (H, W).
        after: a_1, a_2, ..., each of a shape that is broadcast to that of the outputs.
        geometry: stride, padding, dilation, groups.
    """
    if torch.compiler.is_compiling():  # a compiler knows what is cheap to make again
        return _weighted(u, weight, bias, before, after, geometry)
    result: Tensor = _Weighted.apply(u, weight, bias, before, after, geometry)  # type: ignore[no-untyped-call]
    return result


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(u, weight, bias)
        ctx.options = before, after, geometry
        y = _weighted(u, weight, bias, before, after, geometry)
        return y.clone() if y._is_view() else y  # so that it may be modified in place

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor | None, ...] = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for: autograd finds it in the plain form
            leaves = [t for t in saved if t is not None and t.requires_grad]
            alike = [t if t is None else t.to(g.dtype) for t in saved]  # as under autocast
            leaf = iter(torch.autograd.grad(_weighted(*alike, *ctx.options), leaves, g, create_graph=True))  # type: ignore[arg-type]
            wanted = [t is not None and t.requires_grad for t in saved]
            return *(next(leaf) if w else None for w in wanted), None, None, None
        u, weight, bias = saved
        assert u is not None
        assert weight is not None
        before, after, (stride, padding, dilation, groups) = ctx.options
        shape = None if bias is None else [bias.shape[0]]
        mask = [*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2]]
        inputs = _spread(u.to(g.dtype), before, groups)
        gradients = torch.ops.aten.convolution_backward(
            _spread(g, after, groups), inputs, weight.to(g.dtype), shape, stride, padding, dilation, False,
            (0, 0), groups, mask,
        )  # fmt: skip
        du = _gather(gradients[0], before, groups) if mask[0] else None
        found = zip((du, *gradients[1:]), saved, mask, strict=True)
        return *(d.to(t.dtype) if t is not None and m else None for d, t, m in found), None, None, None


def _pair(values: tuple[int, ...]) -> Pair:
    first, second = values
    return first, second


def check_twist(
    tie: str, degree: int, coordinates: str, form: str, kernel: tuple[int, ...] | None = None
) -> None:
    """Refuse options that cannot be (`InputError`, with the nearest names)."""
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
