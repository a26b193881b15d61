"""Registry: name -> factory. What resode ships and what a `--plugin` brings enter by the same door.

A registry holds single names (`cifar_resnet18`) and families (`he_resnet{depth}` for any depth 6n + 2);
a name given twice raises, an unknown one names the nearest known one.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
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

    @property
    def required(self) -> tuple[str, ...]:
        """The options without which nothing can be built."""
        return tuple(name for name, option in self.options().items() if _required(option))

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the factory does not take (`InputError`, the nearest names beside them)."""
        known = self.options()
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
            return
        listed = ", ".join(known) or "none"
        unknown = [
            f"{self.name} has no option '{name}'{nearest(str(name), known)} (options: {listed})"
            for name in options
            if name not in known
        ]
        if unknown:
            raise InputError(*unknown)

    def build(self, **options: Any) -> T:
        """Call the factory with checked options."""
        self.check(options)
        missing = [name for name in self.required if name not in options]
        if missing:
            raise InputError(*(f"{self.name} needs the option '{name}'" for name in missing))
        return self.factory(**options)


@dataclass
class Registry(Generic[T]):
    """The names of one kind of thing; errors call it `kind`, `resode list` calls it `listing`, if at all."""

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
            if inspect.isabstract(factory):
                lacking = ", ".join(sorted(getattr(factory, "__abstractmethods__", ())))
                raise InputError(f"{self.kind} '{name}': its class does not define {lacking}")
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
        raise InputError(f"unknown {self.kind} '{name}'{nearest(name, self._entries)} ({self._known()})")

    def _known(self) -> str:
        """Where to find the names."""
        if self.listing:
            return f"`resode list {self.listing}`; one of your own is registered by --plugin FILE"
        return ", ".join(self.names())

    def build(self, name: str, **options: Any) -> T:
        """Build what `name` stands for."""
        return self.entry(name).build(**options)

    def of(self, value: Any) -> T:
        """What plain data stands for: a name, or `{"name": ..., option: ...}`; anything else as it is.

        Raises:
            InputError: an unknown name or option, or an impossible value.
        """
        if isinstance(value, str):
            return self.build(value)
        if isinstance(value, Mapping):
            options = dict(value)
            name = options.pop("name", None)
            if not isinstance(name, str):
                raise InputError(f"a {self.kind} needs a name ({self._known()}), given: {value}")
            entry = self.entry(name)
            entry.check(options)  # before a key that is no string could reach a call
            return entry.build(**options)
        return value  # type: ignore[no-any-return]

    def describe(self, value: Any) -> str | dict[str, Any]:
        """Plain data from which `of` makes the same value, a frozen dataclass that is registered.

        Raises:
            InputError: its class is not registered.
        """
        for name, entry in self._entries.items():
            if isinstance(entry.factory, type) and entry.factory is not type(value):
                continue
            if all(p.default is not p.empty for p in entry.options().values()) and entry.factory() == value:
                return name
        for name, entry in self._entries.items():
            if entry.factory is type(value):
                return {"name": name, **_chosen(value)}
        raise InputError(f"the {self.kind} {type(value).__name__} is not registered, so no file can name it")


def _required(option: inspect.Parameter) -> bool:
    return option.default is option.empty and option.kind not in (option.VAR_KEYWORD, option.VAR_POSITIONAL)


def _chosen(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, as plain data."""
    chosen = {}
    for item in fields(value):
        content = getattr(value, item.name)
        if item.default is MISSING or content != item.default:
            chosen[item.name] = _plain(content)
    return chosen


def _plain(content: Any) -> Any:
    if hasattr(content, "to_data"):
        return content.to_data()
    return [_plain(item) for item in content] if isinstance(content, tuple) else content
