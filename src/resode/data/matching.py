"""Matching: a data set in the terms of a trained network: its image size and its order of classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resode.data.images import Images, Labels
from resode.data.sources import sources
from resode.errors import InputError


@dataclass(frozen=True, eq=False)
class ClassOrder:
    """The classes of a data set among those of a network.

    Args:
        index: for each class of the data its number in the network, (classes,) int64.
        note: a line for the user where the match is a guess, else empty.
    """

    index: Labels
    note: str = ""

    def relabel(self, images: Images) -> Images:
        """The same images, labelled in the network's order."""
        if np.array_equal(self.index, np.arange(len(self.index))):
            return images
        return Images.of(images.pixels, self.index[images.labels])


def class_order(data: str, found: Sequence[str], wanted: Sequence[str]) -> ClassOrder:
    """Match the classes of a data set with those of a network: by name, or by number if one has no names.

    Case, spaces and punctuation are ignored.

    Args:
        data: name of the data set, for messages.
        found: its classes.
        wanted: the classes of the network, in the order of its logits.

    Raises:
        InputError: another number of classes, or a class that the network does not have.
    """
    if len(found) != len(wanted):
        raise InputError(f"{data}: has {len(found)} classes, the network has {len(wanted)}")
    plain = [["".join(filter(str.isalnum, name.lower())) for name in names] for names in (found, wanted)]
    numbers = [str(number) for number in range(len(wanted))]
    if numbers in plain:
        guess = "one side has numbers for class names, so classes are matched by number"
        return ClassOrder(np.arange(len(wanted)), "" if plain[0] == plain[1] else f"{data}: {guess}")
    if sorted(plain[0]) != sorted(plain[1]):
        other = next(name for name, key in zip(found, plain[0], strict=True) if key not in plain[1])
        raise InputError(
            f"{data}: its class '{other}' is none of the network's ({', '.join(wanted[:10])}"
            f"{', ...' if len(wanted) > 10 else ''}); this network was trained on other classes"
        )
    return ClassOrder(np.array([plain[1].index(key) for key in plain[0]]))


def image_size(data: str, size: tuple[int, int]) -> int | None:
    """The side to resize the images of a data set to, for a network that takes (height, width).

    None where they already have that size, or a registered data set gives no shape, or the input is not
    square: images are then taken as they are.
    """
    shape = sources.entry(data).shape if data in sources.names() else (0, 0, 0)
    return None if shape is None or shape[1:] == size or size[0] != size[1] else size[0]
