"""Passes: forward passes over the test images, counted in units of one by the network itself."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from resode.data import Loader
from resode.progress import report


class Passes:
    """Runs networks over the test images and counts.

    Args:
        batches: the test images.
        evaluations: of the fields in a forward pass of the network.
        expected: how many passes there will be, for the progress.
    """

    def __init__(self, batches: Loader, evaluations: int, expected: float) -> None:
        self.batches, self._evaluations, self._expected = batches, evaluations, expected
        self.images = batches.samples
        self.made = 0.0

    def count(self, images: int, evaluations: int) -> None:
        """Count so many images through so many evaluations of fields."""
        self.made += images * evaluations / (self.images * self._evaluations)
        report(f"depth of {self.images:,} images", min(self.made / self._expected, 0.99))

    @torch.no_grad()
    def logits(self, module: nn.Module, evaluations: int) -> Tensor:
        """The logits (N, classes) of all images, on the CPU; a forward pass makes so many evaluations."""
        found = []
        for batch in self.batches:
            found.append(module(batch.inputs).float().cpu())
            self.count(len(batch.inputs), evaluations)
        return torch.cat(found)

    def inputs(self, images: int, at_once: int) -> Iterator[Tensor]:
        """The first images, so many at once, in float64."""
        left = images
        for batch in self.batches:
            yield from batch.inputs[:left].double().split(at_once)
            left -= len(batch.inputs)
            if left <= 0:
                return
