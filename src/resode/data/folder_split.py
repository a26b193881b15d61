"""Choice of the test images of a folder that has none: a share of each class, by seed and name of the file.

A file keeps its place whatever the size at which images are read; a new one moves at most one other.
"""

import hashlib
from dataclasses import dataclass

import torch

from resode import randomness
from resode.errors import InputError


@dataclass(frozen=True)
class FolderSplit:
    """How test images are chosen.

    Args:
        share: of the images of each class, above 0 and below 1; rounded, but at least one image stays.
        seed: of the choice.
    """

    share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"the share of test images is {self.share}; give one above 0 and below 1")

    def chosen(self, names: list[str]) -> set[str]:
        """Some of the names of a class."""
        hashes = [hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8) for name in names]
        numbers = [int.from_bytes(each.digest(), "little", signed=True) for each in hashes]
        keys = randomness.bits(self.seed, "test", 0, torch.tensor(numbers, dtype=torch.int64)).tolist()
        count = min(max(round(self.share * len(names)), 1), len(names) - 1)
        return {name for _, name in sorted(zip(keys, names, strict=True))[:count]}
