"""Placement: where a rank trains."""

from dataclasses import dataclass

import torch

from resode.training.process.distributed import SINGLE, World


@dataclass(frozen=True)
class Placement:
    """The device of a rank, and the ranks that train together.

    Args:
        device: where network and images lie.
        world: the ranks; each takes its share of every batch.
    """

    device: torch.device
    world: World = SINGLE

    @property
    def share(self) -> tuple[int, int]:
        """(r, p): this rank takes the images r, r + p, ... of every batch."""
        return self.world.rank, self.world.size
