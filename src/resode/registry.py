"""Registry: name -> factory. What resode ships and what a `--plugin` brings enter by the same door.

A registry holds single names (`cifar_resnet18`) and families (`he_resnet{depth}` for any depth 6n + 2);
a name given twice raises, an unknown one names the nearest known one.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from resode.errors import InputError, nearest

T = TypeVar("T")
Factory = Callable[..., T]


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered name: its factory, a line about it, and the shape (C, H, W) of its usual input."""

    name: str
    factory: Factory[T]
    summary: str = ""
    shape: tuple[int, int, int] | None = None

    def options(self) -> dict[str, inspect.Parameter]:
        """The keyword options that the factory takes."""
        return dict(inspect.signature(self.factory).parameters)

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the factory does not take (`InputError`, the nearest names beside them)."""
        known = self.options()
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
            return
        listed = ", ".join(known) or "none"
        unknown = [
            f"{self.name} has no option '{name}'{nearest(name, known)} (options: {listed})"
            for name in options
            if name not in known
        ]
        if unknown:
            raise InputError(*unknown)

    def build(self, **options: Any) -> T:
        """Call the factory with checked options."""
        self.check(options)
        return self.factory(**options)


@dataclass
class Registry(Generic[T]):
    """The names of one kind of thing; `kind` is how errors call it, `listing` how `resode list` does."""

    kind: str
    listing: str
    _entries: dict[str, Entry[T]] = field(default_factory=dict)
    _families: list[tuple[re.Pattern[str], Callable[[str], Entry[T]]]] = field(default_factory=list)

    def register(
        self, name: str, *, summary: str = "", shape: tuple[int, int, int] | None = None
    ) -> Callable[[Factory[T]], Factory[T]]:
        """Decorator: enter a factory under `name`."""

        def enter(factory: Factory[T]) -> Factory[T]:
            if name in self._entries:
                raise InputError(f"{self.kind} '{name}' is registered already; choose another name")
            self._entries[name] = Entry(name, factory, summary, shape)
            return factory

        return enter

    def register_family(self, pattern: str, entry: Callable[[str], Entry[T]]) -> None:
        """Enter every name that matches `pattern` whole; `entry(name)` makes its entry or refuses it."""
        self._families.append((re.compile(pattern), entry))

    def names(self) -> tuple[str, ...]:
        """The single names, in the order of registration (families are open-ended and not listed)."""
        return tuple(self._entries)

    def entry(self, name: str) -> Entry[T]:
        """The entry of `name`; `InputError` with the nearest known name where there is none."""
        if name in self._entries:
            return self._entries[name]
        for pattern, make in self._families:
            if pattern.fullmatch(name):
                return make(name)
        raise InputError(
            f"unknown {self.kind} '{name}'{nearest(name, self._entries)} (`resode list {self.listing}`)"
        )

    def build(self, name: str, **options: Any) -> T:
        """Build what `name` stands for."""
        return self.entry(name).build(**options)
