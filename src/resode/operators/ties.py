"""Ties: constraints that express the kernels W_pq of a twist by fewer coefficients.

With R = rot90 on axes (2, 3) and the parity P W = W.flip(2, 3) = R^2 W:

    free       no constraint
    odd        P W_pq = (-1)^(p+q) W_pq: commutes with a rotation by 180 degrees
    conformal  W_qp = (-1)^p R W_pq: commutes with a rotation by 90 degrees if R W = W. In degree 1
               Wx ~ a d/dx + b d/dy gives a (X d/dx + Y d/dy) + b (X d/dy - Y d/dx): scaling and rotation
    saddle     W_qp = -(-1)^p R W_pq: in degree 1 the trace-free strain [[a, b], [b, -a]] alone
    mixed      antisymmetric along each axis, Wy = R^-1 Wx (degree 1): the corner kernel d2/dxdy alone

A tie equates entries of the kernels up to sign, or makes them zero; one coefficient is learned and stored for
each class of equal entries.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Tie = Literal["free", "odd", "conformal", "saddle", "mixed"]
TIES: tuple[str, ...] = get_args(Tie)
Coordinates = Literal["centred", "per-axis", "published"]  # in which X and Y are measured

Monomial = tuple[int, int]  # the powers of X and Y
Kernels = dict[Monomial, NDArray[np.int64]]  # (..., rows, columns) each


def monomials(degree: int) -> tuple[Monomial, ...]:
    """(p, q) with 1 <= p + q <= degree: (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), ..."""
    return tuple((total - q, q) for total in range(1, degree + 1) for q in range(total + 1))


def _rot90(kernel: NDArray[np.int64], times: int = 1) -> NDArray[np.int64]:
    return np.rot90(kernel, times, axes=(-2, -1))


def _odd(kernels: Kernels) -> Kernels:
    return {(p, q): (-1) ** (p + q) * _rot90(w, 2) for (p, q), w in kernels.items()}


def _conformal(kernels: Kernels) -> Kernels:
    return {(q, p): (-1) ** p * _rot90(w) for (p, q), w in kernels.items()}


def _saddle(kernels: Kernels) -> Kernels:
    return {pq: -w for pq, w in _conformal(kernels).items()}


def _mixed(kernels: Kernels) -> Kernels:
    return {(1, 0): _rot90(kernels[0, 1]), (0, 1): _rot90(kernels[1, 0], -1)}


def _antisymmetric(axis: int) -> Callable[[Kernels], Kernels]:
    return lambda kernels: {pq: -np.flip(w, axis) for pq, w in kernels.items()}


_INVARIANT_UNDER: dict[str, tuple[Callable[[Kernels], Kernels], ...]] = {
    "free": (),
    "odd": (_odd,),
    "conformal": (_conformal,),
    "saddle": (_saddle,),
    "mixed": (_antisymmetric(-2), _antisymmetric(-1), _mixed),
}


@lru_cache
def tie_basis(tie: str, degree: int, kernel: tuple[int, int]) -> NDArray[np.float32]:
    """The kernels of each coefficient: (coefficients, monomials, rows, columns), entries -1, 0 and 1.

    A tie is a group of signed permutations of all entries, under which the kernels are invariant. The sum of
    the images of one entry is the class of entries that equal it up to sign, or zero; each class is taken
    once, from its first entry. (The cyclic groups of a tie's maps commute, so they can be summed one after
    another.)
    """
    terms = monomials(degree)
    size = len(terms) * kernel[0] * kernel[1]
    images = np.eye(size, dtype=np.int64).reshape(size, len(terms), *kernel)
    for image_of in _INVARIANT_UNDER[tie]:
        images = _summed(images, image_of, terms)
    classes = np.sign(images).reshape(size, size)
    chosen = [entry for entry, row in enumerate(classes) if row.any() and row.nonzero()[0][0] == entry]
    return classes[chosen].reshape(-1, len(terms), *kernel).astype(np.float32)


def _summed(
    kernels: NDArray[np.int64], image_of: Callable[[Kernels], Kernels], terms: tuple[Monomial, ...]
) -> NDArray[np.int64]:
    """The sum of the images of (n, monomials, rows, columns) under all powers of a map."""
    total, power = kernels, kernels
    while True:
        image = image_of({term: power[:, i] for i, term in enumerate(terms)})
        power = np.stack([image[term] for term in terms], 1)
        if np.array_equal(power, kernels):
            return total
        total = total + power
