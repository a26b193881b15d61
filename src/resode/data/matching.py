"""Matching: a data set in the terms of a trained network: its image size and its order of classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from resode.data.images import Images, Labels
from resode.data.sources import sources
from resode.errors import InputError, nearest

BY_NAME, BY_POSITION = "by-name", "by-position"
FIX = (
    f"--classes {BY_POSITION} if class i of the data is logit i, or --classes FILE, a mapping from the "
    "data's names to the network's"
)
ASSUMED = "assumed"  # the network's names, which nobody recorded
How = str | Mapping[str, str]  # by name, by position, or by a mapping from names in the data to the network's


@dataclass(frozen=True, eq=False)
class ClassOrder:
    """The classes of a data set among those of a network.

    Args:
        index: for each class of the data its number in the network, (classes,) int64.
        note: a line for the user where they were not simply matched by name, else empty.
        how: they were matched, as results record it: "by-name", "by-position", "assumed", or the mapping.
    """

    index: Labels
    note: str = ""
    how: How = BY_NAME

    @property
    def in_place(self) -> bool:
        """Whether class i is logit i."""
        return np.array_equal(self.index, np.arange(len(self.index)))

    def relabel(self, images: Images) -> Images:
        """The same images, labelled in the network's order."""
        if self.in_place:
            return images
        return Images.of(images.pixels, self.index[images.labels])


def class_order(
    data: str,
    found: Sequence[str],
    wanted: Sequence[str],
    how: How = BY_NAME,
    *,
    assumed: bool = False,
    fix: str = FIX,
) -> ClassOrder:
    """Match the classes of a data set with those of a network.

    By name: equal names, of which the data may lack some; or names equal without case, spaces and
    punctuation, where these leave every name of either side distinct. By position: class i of the data is
    logit i. Or by a mapping from each name in the data to a name of the network.

    Args:
        data: name of the data set, for messages.
        found: its classes.
        wanted: the classes of the network, in the order of its logits.
        how: "by-name", "by-position", or a mapping.
        assumed: nobody recorded the network's names, so that classes of other names match by position.
        fix: the ways out, for the error.

    Raises:
        InputError: more classes, or classes that do not match so; the message has the ways out.
    """
    if isinstance(how, Mapping):
        return _mapped(data, found, wanted, how)
    if how not in (BY_NAME, BY_POSITION):
        raise InputError(f"classes are matched {BY_NAME}, {BY_POSITION} or by a mapping, not {how!r}")
    if len(found) > len(wanted):
        raise InputError(f"{data}: has {len(found)} classes, the network has {len(wanted)}")
    in_order = np.arange(len(found))
    if how == BY_POSITION:
        named = "" if tuple(found) == tuple(wanted) else f"{data}: classes are matched by position"
        return ClassOrder(in_order, named, BY_POSITION)
    if (index := _by_name(found, wanted)) is not None:
        fewer = f"{data}: has {len(found)} of the network's {len(wanted)} classes"
        return ClassOrder(index, fewer if len(found) < len(wanted) else "")
    if assumed and len(found) == len(wanted):
        note = f"{data}: the network's class names are assumed, so that class i is logit i"
        return ClassOrder(in_order, note, ASSUMED)
    raise InputError(
        f"{data}: its classes ({_few(found)}) are not the network's ({_few(wanted)}); give {fix}"
    )


def _by_name(found: Sequence[str], wanted: Sequence[str]) -> Labels | None:
    """The place of each name among those wanted; None where they do not match."""
    if len(set(found)) < len(found) or len(set(wanted)) < len(wanted):
        return None
    if set(found) <= set(wanted):
        return _index(found, wanted)
    plain_found, plain_wanted = _plain(found), _plain(wanted)
    distinct = len(set(plain_found)) == len(wanted) == len(set(plain_wanted))
    return _index(plain_found, plain_wanted) if distinct and set(plain_found) == set(plain_wanted) else None


def read_how(text: str) -> How:
    """How classes are matched, as a command line says it: "by-name", "by-position" or the file of a mapping.

    The file is YAML or JSON; every name is taken as it is written, also where YAML reads a number or a truth
    value.

    Raises:
        InputError: no such file, or no mapping from names to names.
    """
    if text in (BY_NAME, BY_POSITION):
        return text
    ways = (BY_NAME, BY_POSITION)
    file = Path(text)
    try:
        content = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--classes {text}: {error.strerror or error}{nearest(text, ways)}; give {BY_NAME}, "
            f"{BY_POSITION} or a YAML or JSON file, a mapping from the data's names to the network's"
        ) from None
    except ValueError:
        raise InputError(f"{file}: is not UTF-8 text; give a YAML or JSON file") from None
    try:
        pairs = json.loads(content, object_pairs_hook=list) if file.suffix == ".json" else _pairs(content)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: is no YAML or JSON ({reason})") from None
    named = isinstance(pairs, list) and all(
        isinstance(pair, tuple) and isinstance(pair[1], str) for pair in pairs
    )
    if not named or not pairs:
        raise InputError(f"{file}: is no mapping from names to names (NAME IN THE DATA: NAME OF THE NETWORK)")
    names = [name for name, _ in pairs]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(f"{file}: names '{twice[0]}' twice; keep one line")
    return dict(pairs)


def _pairs(text: str) -> list[tuple[str, str]] | None:
    """The pairs of a YAML mapping of texts, as they are written; None for anything else."""
    node = yaml.compose(text, Loader=yaml.BaseLoader)
    if not isinstance(node, yaml.MappingNode):
        return None
    if not all(isinstance(each, yaml.ScalarNode) for pair in node.value for each in pair):
        return None
    return [(key.value, value.value) for key, value in node.value]


def _mapped(data: str, found: Sequence[str], wanted: Sequence[str], how: Mapping[str, str]) -> ClassOrder:
    """Match by a mapping from names in the data to names of the network."""
    mistakes = [f"{data}: the mapping lacks its class '{name}'" for name in found if name not in how]
    unknown = [name for name in dict.fromkeys(how.values()) if name not in wanted]
    mistakes += [f"{data}: '{name}' is no class of the network{nearest(name, wanted)}" for name in unknown]
    if mistakes:
        raise InputError(*mistakes)
    pairs = ", ".join(f"{name} -> {how[name]}" for name in found[:5]) + (", ..." if len(found) > 5 else "")
    used = {name: how[name] for name in found}
    return ClassOrder(_index(list(used.values()), wanted), f"{data}: classes are mapped ({pairs})", used)


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
