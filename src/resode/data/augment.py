"""Settings of the data augmentation.

crop     random H x W window of the image, padded by `crop` pixels with black or by reflection
flip     horizontal flip, with probability 1/2 or every other epoch (Jordan 2024, arXiv:2404.00498)
cutout   square around a random pixel set to the mean (DeVries and Taylor 2017, arXiv:1708.04552)
mixup    w x + (1 - w) x' with another training image x', w ~ Beta(a, a) (Zhang et al. 2018, arXiv:1710.09412)
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from resode.errors import InputError

_NODES: Final = 4096  # nodes of the quantile table; errors are below 1e-4


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of each training image, drawn anew every epoch.

    Attributes:
        crop: pixels of padding on each side; the shift is uniform in -crop ... crop along both axes.
        padding: "zeros" (black) or "reflect" (mirrored at the border pixel).
        flip: flip horizontally with probability 1/2; "alternate": at random in the first epoch, then
            alternately, so that two successive epochs show both orientations.
        cutout: side of the square that is set to 0 after normalisation, centred at any pixel; 0: off.
        mixup: parameter a of Beta(a, a); 0: off.

    Raises:
        InputError: a negative or infinite number, or an unknown flip or padding.
    """

    crop: int = 0
    padding: Literal["zeros", "reflect"] = "zeros"
    flip: bool | Literal["alternate"] = False
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value!r}; give a finite number, at least 0"
            for name, value in (("crop", self.crop), ("cutout", self.cutout), ("mixup", self.mixup))
            if not 0 <= value < math.inf
        ]
        if self.flip not in (True, False, "alternate"):
            wrong.append(f"flip is {self.flip!r}; give True, False or 'alternate'")
        if self.padding not in ("zeros", "reflect"):
            wrong.append(f"padding is '{self.padding}'; give 'zeros' or 'reflect'")
        if wrong:
            raise InputError(*wrong)


def beta_quantile(alpha: float, uniform: Tensor) -> Tensor:
    """Quantile function of Beta(alpha, alpha), from a table.

    The substitution x = t^(1/a), a = min(alpha, 1), removes the pole of the density on [0, 1/2]. The density
    is integrated with the midpoint rule on a grid of t, inverted by linear interpolation, and extended by
    symmetry.

    Args:
        alpha: parameter above 0.
        uniform: probabilities in [0, 1], float64, any shape.

    Returns:
        The x with P(X < x) = `uniform` for X ~ Beta(alpha, alpha), same shape.
    """
    power = 1 / min(alpha, 1.0)
    nodes = torch.linspace(0, 0.5 ** (1 / power), _NODES + 1, dtype=torch.float64, device=uniform.device)
    middle = (nodes[1:] + nodes[:-1]) / 2
    density = middle ** (max(alpha, 1.0) - 1) * (1 - middle**power) ** (alpha - 1)
    total = torch.cat([nodes[:1], density.cumsum(0)])
    total = total / (2 * total[-1])
    lower = torch.minimum(uniform, 1 - uniform).contiguous()
    cell = torch.searchsorted(total, lower, right=True).clamp(1, _NODES) - 1
    width = (total[cell + 1] - total[cell]).clamp_min(1e-300)
    fraction = ((lower - total[cell]) / width).clamp(0, 1)
    x = (nodes[cell] + fraction * (nodes[cell + 1] - nodes[cell])) ** power
    return torch.where(uniform < 0.5, x, 1 - x)
