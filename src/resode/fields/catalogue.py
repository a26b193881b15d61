"""Fields by name, each a `Field` class, an `nn.Module` class or a function of `width` under a decorator.

    @fields.register("diffusion", summary="a learned Laplacian")
    class Diffusion(nn.Module):
        def __init__(self, width, strength=1.0): ...

Recipes and files then say `diffusion`, or `{name: diffusion, strength: 0.1}`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from resode.fields.base import Field
from resode.fields.custom import Custom, Maker
from resode.registry import Defined, Registry


@dataclass(frozen=True)
class _Options:
    """A factory of `Custom` fields with the options of a callable `width -> nn.Module`."""

    make: Maker

    def __call__(self, **options: Any) -> Custom:
        return Custom(self.make, tuple(options.items()))

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.make)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Fields(Registry[Field]):
    """The registered fields. A name stands for a `Field`, or for a callable `width -> nn.Module`."""

    def register(
        self, name: str, *, summary: str = "", shape: tuple[int, int, int] | None = None
    ) -> Callable[[Defined], Defined]:
        """Decorator: register a `Field`, an `nn.Module` class, or a function whose first argument is `width`.

        Raises:
            InputError: the name is registered already, or the class has abstract methods.
        """
        add = super().register(name, summary=summary, shape=shape)

        def register(factory: Defined) -> Defined:
            if _makes_modules(factory):
                add(_Options(factory))
            else:
                add(factory)
            return factory

        return register

    def of(self, value: Any) -> Field:
        """Resolve a name, a mapping, a `Field`, or any other callable `width -> nn.Module`.

        Raises:
            InputError: an unknown name or option, or an invalid value.
        """
        is_field = isinstance(value, Field) or (isinstance(value, type) and issubclass(value, Field))
        if callable(value) and not is_field and not isinstance(value, str | Mapping):
            return Custom(value)
        return super().of(value)

    def describe(self, value: Any) -> str | dict[str, Any]:
        """Plain data from which `of` builds an equal value.

        Raises:
            InputError: it is not registered; with the decorator that does it.
        """
        if not isinstance(value, Custom):
            return super().describe(value)
        for name in self.names():
            factory = self.entry(name).factory
            if isinstance(factory, _Options) and factory.make == value.make:
                return {"name": name, **dict(value.options)} if value.options else name
        raise self.unnamed(value.name)


def _makes_modules(factory: Callable[..., Any]) -> bool:
    if isinstance(factory, type):
        return issubclass(factory, nn.Module)
    return next(iter(inspect.signature(factory).parameters), None) == "width"


fields: Fields = Fields("field", "fields")
