"""Convergence: how far the network's last state is from the flow, and at which order steps approach it.

Y_m is the last state with every step divided by m. For each image

    p = log2(|Y_2 - Y_4| / |Y_4 - Y_8|)                       observed order
    Y = Y_8 + (Y_8 - Y_4) / (2^p - 1),  p the median          the refined flow (Richardson)
    |Y_m - Y| / |Y - y_0|                                     distance to the flow, relative to the way

A p below 1/2 is no convergence: then Y = Y_8, and the distance of Y_8 itself is not known.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FACTORS = (1, 2, 4, 8)  # steps for each step of the network
RANGE = (0.05, 0.95)  # quantiles over images of the range of an order
CONVERGING = 0.5  # order from which Richardson's extrapolation is used
ROUNDING = 64.0  # times eps |Y|: smaller differences have no order


@dataclass(frozen=True)
class Convergence:
    """Orders and distances over images.

    Args:
        order: the median of the observed order; None where it cannot be observed.
        low: 5 % of the images have a lower order.
        high: 5 % of the images have a higher order.
        exact: whether the steps do not matter beyond rounding, so that there is no order.
        distances: the median distance to the flow at each factor; None where it is not finite.
    """

    order: float | None
    low: float | None
    high: float | None
    exact: bool
    distances: Mapping[int, float | None]


class Products:
    """Inner products of the differences of states, image by image: all that `Convergence` needs.

    The states of many images need not be kept: batches are added one after another.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._eps = 0.0

    def add(self, start: Tensor | None, states: Mapping[int, Tensor]) -> None:
        """Add a batch.

        Args:
            start: y_0; None: distances are relative to |Y|.
            states: Y_m for each factor m.
        """
        last = states[8].flatten(1)
        first = torch.zeros_like(last) if start is None else start.flatten(1).to(last)
        differences = [states[m].flatten(1) - last for m in FACTORS[:-1]] + [first - last]
        rows = torch.stack(differences, 1).double()  # (N, 4, D): Y_1, Y_2, Y_4 and y_0 minus Y_8
        self._batches.append((torch.bmm(rows, rows.transpose(1, 2)).cpu(), last.norm(dim=1).double().cpu()))
        self._eps = torch.finfo(last.dtype).eps

    def convergence(self) -> Convergence:
        """Orders and distances over all images that were added."""
        gram = torch.cat([products for products, _ in self._batches])
        size = torch.cat([norms for _, norms in self._batches])
        one, two, four, start = range(4)
        coarse = (gram[:, two, two] - 2 * gram[:, two, four] + gram[:, four, four]).clamp_min(0).sqrt()
        fine = gram[:, four, four].sqrt()
        finite = coarse.isfinite() & fine.isfinite() & size.isfinite()
        usable = finite & (fine > ROUNDING * self._eps * size)
        exact = bool(finite.all()) and 2 * int(usable.sum()) <= len(size)
        orders = torch.log2(coarse[usable] / fine[usable])
        order = low = high = None
        if len(orders) and not exact:
            order = _finite(orders.median())
            low, high = (_finite(orders.quantile(q)) for q in RANGE)
        q = 0.0 if order is None or order < CONVERGING else 1 / (2**order - 1)
        # |A - q B|^2 for A = Y_m - Y_8 (or y_0 - Y_8) and B = Y_8 - Y_4, of which the Gram matrix has -B
        b2 = gram[:, four, four]

        def squared(row: int | None) -> Tensor:
            if row is None:
                return q * q * b2
            return (gram[:, row, row] + 2 * q * gram[:, row, four] + q * q * b2).clamp_min(0)

        way = squared(start).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        rows = {1: one, 2: two, 4: four, 8: None}
        distances = {m: _finite((squared(row).sqrt() / way).median()) for m, row in rows.items()}
        if not q and not exact:
            distances[8] = None
        return Convergence(order, low, high, exact, distances)


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
