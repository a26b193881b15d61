"""Augmented batches of images that are kept on the device, as 8-bit pixels if they come as such.

The images are padded once. Any W adjacent pixels in a row of a padded image are one row of an overlapping
view, so that the random crops of a batch are a single gather of H rows an image. The augmentation of a
sample is a function of (seed, epoch, its rank by content digest). Batches can therefore be requested in any
order and sharded in any way, and they do not depend on the order or the file format of the images.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resode import randomness
from resode.data.augment import Augmentation, beta_quantile
from resode.data.images import Images
from resode.errors import InputError, ResourceError

_CHUNK = 1024  # images padded at a time


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch, or one rank's shard of it.

    Attributes:
        inputs: `(B, C, H, W)`, normalised, channels last in memory.
        targets: `(B,)` int64.
        partners: `(B,)` int64, targets of the images mixed in; None without mixup.
        weight: `(B,)` float32 with loss = weight CE(targets) + (1 - weight) CE(partners); None without mixup.
        scale: factor of the mean loss. The mean over ranks of the scaled losses is the loss of the whole
            batch; 1 without sharding.
    """

    inputs: Tensor
    targets: Tensor
    partners: Tensor | None = None
    weight: Tensor | None = None
    scale: float = 1.0

    @property
    def samples(self) -> int:
        """Number of images that count; 0 if the shard is empty and one image fills its place."""
        return len(self.targets) if self.scale else 0


@dataclass(frozen=True, eq=False)
class _Epoch:
    """Random draws of one epoch, one for each sample by its position in `index`."""

    number: int
    order: Tensor  # positions in training order
    start: Tensor  # flat index of the pixel where the sample's crop begins
    flip: Tensor | None  # 0 or 1
    cutout: tuple[Tensor, Tensor] | None  # row and column of the centre
    mixup: tuple[Tensor, Tensor] | None  # position of the partner, weight


class Loader:
    """Makes augmented training batches (`batch(epoch, step)`) and plain ones in order (iteration).

    Args:
        images: one split.
        index: `(n,)` positions in `images` of the samples, each at most once.
        batch_size: images a batch; the last batch of an epoch may be smaller.
        mean: mean of each channel of pixels / 255 (of float32 pixels as they are).
        std: standard deviation of each channel of the same, above 0.
        device: device of the pixels and the batches.
        dtype: dtype of the inputs; float16 and bfloat16 are rounded from float32.
        augmentation: augmentation of the training batches.
        seed: seed of order and augmentation.
        shard: (rank, world size); the loader returns images rank, rank + world size, ... of every batch. A
            rank without images gets the first one with scale 0.

    Raises:
        InputError: no sample, a position out of range or repeated, or mean and std that do not match the
            channels.
        ResourceError: the images exceed the memory of the device.

    Example:
        >>> images = resode.load_data("digits").train
        >>> index = np.arange(len(images))
        >>> loader = Loader(images, index, batch_size=128, mean=[0.3], std=[0.4], device="cpu")
        >>> loader.batch(epoch=0, step=0).inputs.shape
        torch.Size([128, 1, 8, 8])
    """

    def __init__(
        self,
        images: Images,
        index: npt.NDArray[np.integer],
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - a frozen value
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        _check(images, index, batch_size, mean, std)
        self.samples = len(index)
        self.steps = math.ceil(self.samples / batch_size)
        self.batch_size, self.augmentation, self.seed = batch_size, augmentation, seed
        self.device, self.dtype, self.shard = torch.device(device), dtype, shard
        self._size = images.pixels.shape[1:]
        ranks = np.empty(len(images), np.int64)
        ranks[np.argsort(images.digests, kind="stable")] = np.arange(len(images))
        self._index = torch.from_numpy(ranks[index]).to(
            self.device
        )  # rank by content: the key of a sample's random draws
        self._position = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        self._position[self._index] = torch.arange(self.samples, device=self.device)
        self._labels = torch.from_numpy(images.labels[index]).to(self.device)
        self._pixels = _padded(images, index, augmentation, self.device)
        self._scale, self._shift = self._normalisation(images.unit, mean, std)
        self._windows = _row_windows(self._pixels, self._size[1])
        self._rows = torch.arange(self._size[0], device=self.device) * self._pixels.shape[2]
        self._epoch: _Epoch | None = None

    def batch(self, epoch: int, step: int) -> Batch:
        """The augmented batch of this epoch and step.

        Raises:
            IndexError: the epoch has no such step.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        draws = self._draws(epoch)
        positions, scale = self._shard(draws.order[step * self.batch_size : (step + 1) * self.batch_size])
        inputs, targets = self._augmented(positions, draws), self._labels[positions]
        if draws.mixup is None:
            return Batch(self._finished(inputs), targets, scale=scale)
        partners, weight = draws.mixup[0][positions], draws.mixup[1][positions]
        inputs = torch.lerp(self._augmented(partners, draws), inputs, weight.to(inputs.dtype)[:, None, None])
        return Batch(self._finished(inputs), targets, self._labels[partners], weight, scale)

    def __iter__(self) -> Iterator[Batch]:
        """Yield every sample once, in the order of `index`, without augmentation."""
        pad = self.augmentation.crop
        height, width, _ = self._size
        for start in range(0, self.samples, self.batch_size):
            window = self._pixels[start : start + self.batch_size, pad : pad + height, pad : pad + width]
            window, scale = self._shard(window)
            inputs = self._normalised(window.reshape(len(window), height, -1))
            labels, _ = self._shard(self._labels[start : start + self.batch_size])
            yield Batch(self._finished(inputs), labels, scale=scale)

    def _shard(self, batch: Tensor) -> tuple[Tensor, float]:
        """This rank's shard of a batch, and the scale of its loss."""
        rank, size = self.shard
        own = batch[rank::size]
        return (own, len(own) * size / len(batch)) if len(own) else (batch[:1], 0.0)

    def _draws(self, epoch: int) -> _Epoch:
        """All draws of an epoch; the last epoch is cached."""
        if self._epoch is None or self._epoch.number != epoch:
            self._epoch = self._draw(epoch)
        return self._epoch

    def _draw(self, epoch: int) -> _Epoch:
        def integers(purpose: str, below: int) -> Tensor:
            return randomness.integers(self.seed, purpose, epoch, self._index, below)

        augmentation, (height, width, _) = self.augmentation, self._size
        columns = self._pixels.shape[2]
        start = torch.arange(self.samples, device=self.device) * (self._pixels.shape[1] * columns)
        flip = cutout = mixup = None
        if augmentation.crop:
            start += integers("crop_rows", 2 * augmentation.crop + 1) * columns
            start += integers("crop_columns", 2 * augmentation.crop + 1)
        if augmentation.flip == "alternate":
            flip = (randomness.integers(self.seed, "flip", 0, self._index, 2) + epoch) % 2
        elif augmentation.flip:
            flip = integers("flip", 2)
        if augmentation.cutout:
            cutout = integers("cutout_rows", height), integers("cutout_columns", width)
        if augmentation.mixup:
            uniform = randomness.uniform(self.seed, "mixup_weight", epoch, self._index)
            weight = beta_quantile(augmentation.mixup, uniform).to(torch.float32)
            partner = self._index.sort().values[integers("mixup_partner", self.samples)]
            mixup = self._position[partner], weight
        order = self._position[randomness.order(self.seed, epoch, self._index)]
        return _Epoch(epoch, order, start, flip, cutout, mixup)

    def _augmented(self, positions: Tensor, draws: _Epoch) -> Tensor:
        """Crop, flip, normalise and cut out: `(B, H, W C)` in floating point."""
        height, width, channels = self._size
        rows = draws.start[positions, None] + self._rows
        pixels = self._windows.index_select(0, rows.view(-1)).view(-1, height, width, channels)
        if draws.flip is not None:
            unflipped = torch.arange(len(positions), device=self.device)
            both = torch.cat([pixels, pixels.flip(2)])
            pixels = both.index_select(0, unflipped + len(positions) * draws.flip[positions])
        inputs = self._normalised(pixels.view(-1, height, width * channels))
        if draws.cutout is not None:
            self._cut_out(inputs, draws.cutout[0][positions], draws.cutout[1][positions])
        return inputs

    def _cut_out(self, inputs: Tensor, row: Tensor, column: Tensor) -> None:
        """Set the square that begins at centre - side // 2 to 0, as far as it is inside the image."""
        side = self.augmentation.cutout

        def inside(centre: Tensor, size: int) -> Tensor:
            offset = torch.arange(size, device=self.device) - (centre[:, None] - side // 2)
            return ((offset >= 0) & (offset < side)).to(inputs.dtype)

        height, width, channels = self._size
        columns = inside(column, width).repeat_interleave(channels, 1)
        inputs.mul_(1 - inside(row, height)[:, :, None] * columns[:, None, :])

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(pixels / unit - mean) / std for `(B, H, W C)`; long rows let it vectorise."""
        return pixels.to(self._scale.dtype, copy=True).mul_(self._scale).add_(self._shift)

    def _finished(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.dtype).view(-1, *self._size).permute(0, 3, 1, 2)

    def _normalisation(self, unit: int, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        mean64, std64 = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        width = self._size[1]
        scale, shift = (1 / (unit * std64)).repeat(width), (-mean64 / std64).repeat(width)
        return scale.to(self.device, dtype), shift.to(self.device, dtype)


def _check(
    images: Images,
    index: npt.NDArray[np.integer],
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    channels = images.pixels.shape[3]
    if index.ndim != 1 or not len(index) or index.dtype.kind not in "iu":
        raise InputError(f"index has shape {index.shape} and dtype {index.dtype}; give at least one position")
    if index.min() < 0 or index.max() >= len(images) or len(np.unique(index)) != len(index):
        raise InputError(
            f"index repeats a position or exceeds the {len(images)} images; give each at most once"
        )
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
        raise InputError(
            f"mean {tuple(mean)} and std {tuple(std)} do not match {channels} channels; "
            "give one value for each, std above 0"
        )


def _padded(
    images: Images, index: npt.NDArray[np.integer], augmentation: Augmentation, device: torch.device
) -> Tensor:
    """The padded images of `index` on the device: `(n, H + 2p, W + 2p, C)` in the dtype of the pixels."""
    pad = augmentation.crop
    height, width, channels = images.pixels.shape[1:]
    shape = (len(index), height + 2 * pad, width + 2 * pad, channels)
    try:
        dtype = torch.uint8 if images.pixels.dtype == np.uint8 else torch.float32
        table = torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError on an accelerator, RuntimeError on the CPU
        size = math.prod(shape) * images.pixels.itemsize / 2**30
        raise ResourceError(f"{len(index):,} images need {size:,.1f} GiB on {device}; use fewer") from error
    mode: Literal["reflect", "constant"] = "reflect" if augmentation.padding == "reflect" else "constant"
    for start in range(0, len(index), _CHUNK):
        chunk = np.ascontiguousarray(images.pixels[index[start : start + _CHUNK]])
        if pad:
            chunk = np.pad(chunk, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode)
        table[start : start + len(chunk)] = torch.from_numpy(chunk)
    return table


def _row_windows(pixels: Tensor, width: int) -> Tensor:
    """View of `(n, P, Q, C)` as all sequences of `width` pixels, `(n P Q - width + 1, width C)`; no copy."""
    count, rows, columns, channels = pixels.shape
    return pixels.as_strided((count * rows * columns - width + 1, width * channels), (channels, 1))
