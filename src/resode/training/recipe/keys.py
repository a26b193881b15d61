"""Keys: what the settings are, in words, read from the pydantic models that validate them.

    for key in keys(Experiment):
        print(key.path, key.values, key.default, key.description)

`resode explain`, the comments of `resode show` and the messages about mistakes share these words.
"""

import enum
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Sections = tuple[type[BaseModel], ...]


@dataclass(frozen=True)
class Key:
    """A key of the settings.

    Args:
        path: its dotted path, such as `optimizer.lr`.
        values: what it may be, in words.
        default: its default as YAML writes it; empty where it has to be given.
        description: a sentence about it.
        variant: the name of the variant to which it belongs, such as `sgd`; empty elsewhere.
        sections: the sections that it may hold, whose keys are its sub-keys.
    """

    path: str
    values: str
    default: str
    description: str
    variant: str
    sections: Sections

    def subkeys(self) -> list["Key"]:
        """The keys below this one."""
        return [key for section in self.sections for key in keys(section, self.path)]


def keys(section: type[BaseModel], prefix: str = "") -> list[Key]:
    """The keys of a section, in order; `prefix` is its path."""
    return [_key(section, name, prefix) for name in section.model_fields]


def find(section: type[BaseModel], path: str) -> list[Key]:
    """The keys of that path; several where variants have the same (`optimizer.lr`), none if it is unknown."""
    head, _, rest = path.partition(".")
    found = [key for key in keys(section) if key.path == head]
    for name in rest.split(".") if rest else ():
        below = [key for above in found for key in above.subkeys()]
        found = [key for key in below if key.path.rpartition(".")[2] == name]
    return found


def every_path(section: type[BaseModel]) -> list[str]:
    """The paths of all keys, those of upper levels first."""
    level, paths = keys(section), []
    while level:
        paths += [key.path for key in level]
        level = [key for above in level for key in above.subkeys()]
    return list(dict.fromkeys(paths))


def every_key(section: type[BaseModel]) -> list[Key]:
    """All keys, each followed by those below it."""
    found = []
    for key in keys(section):
        found += _with_subkeys(key)
    return found


def _with_subkeys(key: Key) -> list[Key]:
    return [key, *(each for below in key.subkeys() for each in _with_subkeys(below))]


def variant(section: type[BaseModel]) -> str:
    """The `name` that selects a section among several; empty if there is no choice."""
    name = section.model_fields.get("name")
    return str(name.default) if name is not None and _is_literal(name.annotation) else ""


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a type admits, within lists and unions, too."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
    else:
        for argument in typing.get_args(annotation):
            yield from sections_in(argument)


def item_of(annotation: Any) -> Any:
    """The type of the items of a list type, or of the list in a union; Any where there is none."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (tuple, list):
        return arguments[0]
    found = [item_of(each) for each in arguments] if origin in (*_UNIONS, Annotated) else []
    return next((each for each in found if each is not Any), Any)


def described(annotation: Any, constraints: typing.Sequence[Any] = ()) -> str:
    """A type in words: `a whole number above 0`.

    Args:
        annotation: the type.
        constraints: what `Annotated` adds to it, such as `Gt(0)`.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return described(arguments[0], arguments[1:])
    if origin in _UNIONS:
        return _alternatives(arguments)
    if origin is Literal:
        return _joined([written(value) for value in arguments])
    if origin in (tuple, list):
        item = described(arguments[0], constraints if origin is list else ())
        length = f" of {len(arguments)}" if origin is tuple and Ellipsis not in arguments else ""
        return f"a list{length}" if item == _ANY else f"a list{length}, each {item}"
    if origin is dict or annotation is dict:
        return "a mapping of keys to values"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        more = " and options" if annotation.model_config.get("extra") == "allow" else ""
        return f"a section of {', '.join(annotation.model_fields)}{more}"
    return _WORDS.get(annotation, _ANY) + _bounds(constraints)


def written(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if isinstance(value, BaseModel):
        inner = value.model_dump(mode="json")
        return written({name: item for name, item in inner.items() if item is not None})
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value, default=str)


_UNIONS = (typing.Union, types.UnionType)
_ANY = "a value"
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    ByteSize: "a number of bytes, or a size such as 600MB,",
    type(None): "null",
}
_RELATIONS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _bounds(constraints: typing.Sequence[Any]) -> str:
    constraints = [each for c in constraints for each in (c.metadata if isinstance(c, FieldInfo) else (c,))]
    given = [
        f"{words} {written(limit)}"
        for constraint in constraints
        for name, words in _RELATIONS.items()
        if (limit := getattr(constraint, name, None)) is not None
    ]
    return f" {' and '.join(given)}" if given else ""


def _alternatives(members: tuple[Any, ...]) -> str:
    """The members of a union: a choice of sections by their name, or the words of each."""
    sections = [member for member in members if list(sections_in(member))]
    names = [variant(member) for member in sections if isinstance(member, type)]
    if len(names) > 1 and all(names):
        return f"a section whose name is {_joined(names)}, as in {{name: {names[0]}}}"
    words = [described(member) for member in members]
    if bool in members:
        words = ["true", "false", *(word for word in words if word != _WORDS[bool])]
    return _joined(words)


def _joined(words: typing.Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Literal


def _key(section: type[BaseModel], name: str, prefix: str) -> Key:
    field: FieldInfo = section.model_fields[name]
    return Key(
        path=f"{prefix}.{name}" if prefix else name,
        values=words_of(field),
        default=_default(field),
        description=" ".join((field.description or "").split()),
        variant=variant(section),
        sections=tuple(sections_in(field.annotation)),
    )


def words_of(field: FieldInfo) -> str:
    """What a field may be, in words."""
    return described(field.annotation, field.metadata)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if value is PydanticUndefined else written(value)
