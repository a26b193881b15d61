"""Randomness as a function of (seed, purpose, epoch, sample index), not a global stream.

A counter-based generator: a draw is splitmix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195) chained
over the words of its key, in wrapping 64-bit integer arithmetic. The same key gives the same draw on every
device, for any batch split, number of workers and resume point.
"""

import torch
from torch import Tensor

PURPOSES = {
    name: number
    for number, name in enumerate(
        ("order", "crop_rows", "crop_columns", "flip", "cutout_rows", "cutout_columns", "mixup_weight",
         "mixup_partner", "validation", "subset", "angle", "scale", "test")
    )
}  # fmt: skip

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio in 64 bits, as a signed integer
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: Tensor) -> Tensor:
    x = x + _GAMMA
    x = (x ^ _logical_shift(x, 30)) * _MIX1
    x = (x ^ _logical_shift(x, 27)) * _MIX2
    return x ^ _logical_shift(x, 31)


def bits(seed: int, purpose: str, epoch: int, index: Tensor) -> Tensor:
    """64 random bits for each sample.

    Args:
        seed: of the run.
        purpose: a name in `PURPOSES`.
        epoch: number of the epoch.
        index: sample numbers, int64, any shape.

    Returns:
        int64, same shape as `index`.
    """
    key = torch.zeros((), dtype=torch.int64, device=index.device)
    for word in (seed, PURPOSES[purpose], epoch):
        key = _splitmix64(key ^ word)
    return _splitmix64(_splitmix64(index ^ key))


def integers(seed: int, purpose: str, epoch: int, index: Tensor, below: int) -> Tensor:
    """Uniform integers in 0 ... below - 1, int64 (probabilities are exact to 2^-31)."""
    return (_logical_shift(bits(seed, purpose, epoch, index), 33) * below) >> 31


def uniform(seed: int, purpose: str, epoch: int, index: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64 with 53 random bits."""
    return _logical_shift(bits(seed, purpose, epoch, index), 11).to(torch.float64) * 2.0**-53


def order(seed: int, epoch: int, index: Tensor, purpose: str = "order") -> Tensor:
    """Shuffle `index` for this epoch: sort it by the random bits of each sample."""
    return index[torch.argsort(bits(seed, purpose, epoch, index), stable=True)]
