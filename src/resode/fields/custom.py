"""Fields of one's own: any callable `width -> nn.Module` is a right-hand side."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from resode.errors import InputError
from resode.fields.base import Field

Maker = Callable[..., nn.Module]


@dataclass(frozen=True, repr=False)
class Custom(Field):
    """f = make(width), a module (N, width, H, W) -> (N, width, H, W), once for each control node.

    Args:
        make: an `nn.Module` class, a function, a lambda or a `functools.partial`, called with the width.
        options: further keyword arguments of `make`, as pairs.

    Raises:
        InputError: `make` is a module instead of something that makes one, or does not take a width.

    Example:
        >>> Custom(lambda width: nn.Conv2d(width, width, 3, padding=1)).build(8)
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    make: Maker
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.make, nn.Module):
            kind = type(self.make).__name__
            raise InputError(
                f"field {kind}: a module; each control node needs one of its own: give what makes it, the "
                f"class {kind} or lambda width: {kind}(...)"
            )
        if not _accepts(self.make, 0, **dict(self.options)):
            raise InputError(
                f"field {self.name}: is called with the width alone; wrap it, "
                f"lambda width: {self.name}(width, ...)"
            )

    def __deepcopy__(self, _: Any) -> "Custom":
        return self  # a value: a copied network has an equal one

    def build(self, width: int) -> nn.Module:
        module = self.make(width, **dict(self.options))
        if not isinstance(module, nn.Module):
            raise InputError(
                f"field {self.name}: an nn.Module is needed for width {width}, not {type(module).__name__}"
            )
        if not _accepts(module.forward, None):
            raise InputError(
                f"field {self.name}: its forward has to take the state alone, forward(self, y); "
                "a right-hand side has no time, its parameters have"
            )
        return module

    def __repr__(self) -> str:
        return f"Custom({', '.join((self.name, *(f'{key}={value!r}' for key, value in self.options)))})"

    @property
    def name(self) -> str:
        """The name of the class or function."""
        made = getattr(self.make, "func", self.make)  # of a partial
        return str(getattr(made, "__name__", type(made).__name__))

    @property
    def equation(self) -> str:
        return f"{self.name}(y)"


def _accepts(function: Callable[..., Any], *arguments: Any, **options: Any) -> bool:
    """Whether a function can be called with these arguments; True if it does not say."""
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError:
        return False
    except ValueError:  # a builtin
        return True
    return True
