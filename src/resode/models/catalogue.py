"""The registry of models: `@models.register("name")` on a function, `@by_depth("name", depths)` on a family.

A family is a function whose first argument is the depth: the name of a model is its family and its depth.
"""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from resode.errors import InputError
from resode.registry import Defined, Entry, Registry

Shape = tuple[int, int, int]
CIFAR: Shape = (3, 32, 32)

models: Registry[nn.Module] = Registry("model", "models")


def by_depth(
    family: str,
    depths: Iterable[int],
    *,
    summary: str,
    shape: Shape = CIFAR,
    check: Callable[[int], object] | None = None,
    **options: Any,
) -> Callable[[Defined], Defined]:
    """Decorator: register a family of models, `factory(depth, **options)`.

    Args:
        family: the name, to which the depth is appended.
        depths: those that are listed.
        summary: one line, with `{depth}`.
        shape: (C, H, W) of the usual input.
        check: raises `InputError` for an impossible depth; with it, other depths have names, too.
        options: options of the factory that the family sets.
    """

    def register(factory: Defined) -> Defined:
        def entry(name: str) -> Entry[nn.Module]:
            depth = int(name.removeprefix(family))
            if check is not None:
                check(depth)  # before anything is built
            return Entry(name, partial(factory, depth, **options), summary.format(depth=depth), shape)

        for depth in depths:
            listed = entry(f"{family}{depth}")
            models.register(listed.name, summary=listed.summary, shape=shape)(listed.factory)
        if check is not None:
            models.register_family(family + r"\d{1,5}", entry)
        return factory

    return register


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create` builds and a pattern matches, in the order of `resode list models`.

    The families of He et al. accept every depth 6n + 2, not only the listed ones.

    Args:
        pattern: a part of a name (`momentum`), or a pattern (`he_*`) with `*`, `?` and `[...]`.

    Raises:
        InputError: no text.

    Example:
        >>> list_models("momentum*")
        ['momentum_resnet20', 'momentum_resnet32', 'momentum_resnet44', 'momentum_resnet56']
    """
    if not isinstance(pattern, str):
        raise InputError(f"pattern {pattern!r}: a text such as 'he_*' is needed")
    return [name for name in models.names() if pattern in name or fnmatchcase(name, pattern)]
