"""Matching: a data set in the terms of a trained network: its image size and its order of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resode.data.images import Images, Labels
from resode.data.sources import sources
from resode.errors import InputError, nearest

BY_NAME, BY_POSITION = "by-name", "by-position"


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


def class_order(
    data: str,
    found: Sequence[str],
    wanted: Sequence[str],
    how: str | Mapping[str, str] = BY_NAME,
    *,
    assumed: bool = False,
) -> ClassOrder:
    """Match the classes of a data set with those of a network.

    By name: equal names; or names equal without case, spaces and punctuation, where these leave every name of
    either side distinct. By position: class i of the data is logit i. Or by a mapping from each name in the
    data to a name of the network.

    Args:
        data: name of the data set, for messages.
        found: its classes.
        wanted: the classes of the network, in the order of its logits.
        how: "by-name", "by-position", or a mapping.
        assumed: nobody recorded the network's names, so that classes of other names match by position.

    Raises:
        InputError: another number of classes, or classes that do not match so; the message has the ways out.
    """
    if not isinstance(how, str):
        return _mapped(data, found, wanted, how)
    if how not in (BY_NAME, BY_POSITION):
        raise InputError(f"classes are matched {BY_NAME}, {BY_POSITION} or by a mapping, not {how!r}")
    if len(found) != len(wanted):
        raise InputError(f"{data}: has {len(found)} classes, the network has {len(wanted)}")
    in_order = np.arange(len(wanted))
    if how == BY_POSITION:
        named = "" if tuple(found) == tuple(wanted) else f"{data}: classes are matched by position"
        return ClassOrder(in_order, named)
    if len(set(found)) == len(set(wanted)) == len(wanted):
        if set(found) == set(wanted):
            return ClassOrder(_index(found, wanted))
        plain_found, plain_wanted = _plain(found), _plain(wanted)
        if len(set(plain_found)) == len(wanted) and set(plain_found) == set(plain_wanted):
            return ClassOrder(_index(plain_found, plain_wanted))
    if assumed:
        return ClassOrder(
            in_order, f"{data}: the network's class names are assumed, so that class i is logit i"
        )
    raise InputError(
        f"{data}: its classes ({_few(found)}) are not the network's ({_few(wanted)}); give "
        f"--classes {BY_POSITION} if class i of the data is logit i, or --classes FILE, a mapping from the "
        "data's names to the network's"
    )


def _mapped(data: str, found: Sequence[str], wanted: Sequence[str], how: Mapping[str, str]) -> ClassOrder:
    """Match by a mapping from names in the data to names of the network."""
    mistakes = [f"{data}: the mapping lacks its class '{name}'" for name in found if name not in how]
    unknown = [name for name in dict.fromkeys(how.values()) if name not in wanted]
    mistakes += [f"{data}: '{name}' is no class of the network{nearest(name, wanted)}" for name in unknown]
    if mistakes:
        raise InputError(*mistakes)
    pairs = ", ".join(f"{name} -> {how[name]}" for name in found[:5]) + (", ..." if len(found) > 5 else "")
    return ClassOrder(_index([how[name] for name in found], wanted), f"{data}: classes are mapped ({pairs})")


def _index(names: Sequence[str], among: Sequence[str]) -> Labels:
    place = {name: number for number, name in enumerate(among)}
    return np.array([place[name] for name in names], dtype=np.int64)


def _plain(names: Sequence[str]) -> list[str]:
    """Names without case, spaces and punctuation."""
    return ["".join(filter(str.isalnum, name.casefold())) for name in names]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def image_size(data: str, size: tuple[int, int]) -> int | None:
    """The side to resize the images of a data set to, for a network that takes (height, width).

    None where they already have that size, or a registered data set gives no shape, or the input is not
    square: images are then taken as they are.
    """
    shape = sources.entry(data).shape if data in sources.names() else (0, 0, 0)
    return None if shape is None or shape[1:] == size or size[0] != size[1] else size[0]
