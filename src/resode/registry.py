"""Registry: name -> factory, for everything that is named in recipes: models, fields, integrators, ...

A registry holds single names (`cifar_resnet18`) and families (`he_resnet{depth}` for any depth 6n + 2). A
`--plugin` registers its own in the same way. A duplicate name is an error; the error for an unknown name
suggests the nearest known one.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Generic, TypeVar

from resode.errors import InputError, nearest

IN_PYTHON = " given in Python"  # ends the name of data or of a loss that no registered name stands for
T = TypeVar("T")
Factory = Callable[..., T]
Defined = TypeVar("Defined", bound=Callable[..., Any])  # a class or function, as it was defined


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered name.

    Args:
        name: as recipes give it.
        factory: makes the thing from keyword options.
        summary: one line about it.
        shape: (C, H, W) of its usual input.
    """

    name: str
    factory: Factory[T]
    summary: str = ""
    shape: tuple[int, int, int] | None = None

    def options(self) -> dict[str, inspect.Parameter]:
        """The keyword options of the factory."""
        return dict(inspect.signature(self.factory).parameters)

    @property
    def required(self) -> tuple[str, ...]:
        """The options that have no default."""
        return tuple(name for name, option in self.options().items() if _required(option))

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise `InputError` for options that the factory does not have, with the nearest names."""
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
        """Call the factory.

        Raises:
            InputError: an unknown or a missing option.
        """
        self.check(options)
        missing = [name for name in self.required if name not in options]
        if missing:
            raise InputError(*(f"{self.name} needs the option '{name}'" for name in missing))
        return self.factory(**options)


@dataclass
class Registry(Generic[T]):
    """All names of one kind of thing.

    Args:
        kind: what error messages call it, such as `model`.
        listing: what `resode list` calls it, such as `models`; empty if it is not listed.
    """

    kind: str
    listing: str
    _entries: dict[str, Entry[T]] = field(default_factory=dict)
    _families: list[tuple[re.Pattern[str], Callable[[str], Entry[T]]]] = field(default_factory=list)

    def register(
        self, name: str, *, summary: str = "", shape: tuple[int, int, int] | None = None
    ) -> Callable[[Defined], Defined]:
        """Decorator: register a factory under `name`.

        Raises:
            InputError: the name is registered already, or the class has abstract methods.
        """

        def add(factory: Defined) -> Defined:
            if name in self._entries:
                raise InputError(f"{self.kind} '{name}' is registered already; choose another name")
            if inspect.isabstract(factory):
                lacking = ", ".join(sorted(getattr(factory, "__abstractmethods__", ())))
                raise InputError(f"{self.kind} '{name}': its class does not define {lacking}")
            self._entries[name] = Entry(name, factory, summary, shape)
            return factory

        return add

    def register_family(self, pattern: str, entry: Callable[[str], Entry[T]]) -> None:
        """Register every name that `pattern` matches in full; `entry(name)` makes its entry or raises."""
        self._families.append((re.compile(pattern), entry))

    def names(self) -> tuple[str, ...]:
        """The single names, in order of registration, without families."""
        return tuple(self._entries)

    def entry(self, name: str) -> Entry[T]:
        """The entry of `name`.

        Raises:
            InputError: the name is unknown; with the nearest known one.
        """
        if not isinstance(name, str):
            raise InputError(f"{self.kind} {name!r}: a name is needed ({self._known()})")
        if name in self._entries:
            return self._entries[name]
        for pattern, make in self._families:
            if pattern.fullmatch(name):
                return make(name)
        raise InputError(f"unknown {self.kind} '{name}'{nearest(name, self._entries)} ({self._known()})")

    def _known(self) -> str:
        """A hint where known names are found."""
        if self.listing:
            return f"`resode list {self.listing}`; one of your own is registered by --plugin FILE"
        return ", ".join(self.names())

    def build(self, name: str, **options: Any) -> T:
        """Build the thing of that name."""
        return self.entry(name).build(**options)

    def of(self, value: Any) -> T:
        """Build from plain data: a name, or `{"name": ..., option: ...}`; other values are returned as given.

        Raises:
            InputError: an unknown name or option, or an invalid value.
        """
        if isinstance(value, str):
            return self.build(value)
        if isinstance(value, Mapping):
            options = dict(value)
            name = options.pop("name", None)
            if not isinstance(name, str):
                raise InputError(f"a {self.kind} needs a name ({self._known()}), given: {value}")
            entry = self.entry(name)
            entry.check(options)  # first: a key may not be a string
            return entry.build(**options)
        return value  # type: ignore[no-any-return]

    def describe(self, value: Any) -> str | dict[str, Any]:
        """Plain data from which `of` builds an equal value.

        Args:
            value: an instance of a registered frozen dataclass.

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
        raise self.unnamed(type(value).__name__)

    def unnamed(self, name: str) -> InputError:
        """The error for a value that files cannot name, with the decorator that names it."""
        return InputError(
            f"the {self.kind} {name} has no name for files: put @{self.kind}s.register('NAME') on its "
            "definition, and load that by --plugin FILE"
        )


def instance(value: Any, kind: type, what: str, expected: str) -> Any:
    """Return a value of the right kind.

    Args:
        value: what was given.
        kind: the class it has to be of.
        what: what messages call it, such as `integrator`.
        expected: what may be given.

    Raises:
        InputError: a value of another kind, or a class that was not called; with the call to write.
    """
    if isinstance(value, kind):
        return value
    if isinstance(value, type) and issubclass(value, kind):
        needed = [f"{name}=..." for name, p in inspect.signature(value).parameters.items() if _required(p)]
        call = f"{value.__name__}({', '.join(needed)})"
        raise InputError(f"{what} {value.__name__}: a class where its value is needed; write {call}")
    raise InputError(f"{what} {value!r}: expected {expected}")


def _required(option: inspect.Parameter) -> bool:
    return option.default is option.empty and option.kind not in (option.VAR_KEYWORD, option.VAR_POSITIONAL)


def _chosen(value: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, as plain data."""
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
