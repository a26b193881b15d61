"""Acceleration: the places where a faster implementation may replace plain torch.

Each `Slot` holds a default that needs torch alone. `resode.kernels` registers its C++ kernels here by dotted
name when `resode` is imported; a slot imports that name at first use. So `import resode` stays light, what is
accelerated knows nothing of kernels, and without the folder `kernels` the defaults are used.
"""

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")


@dataclass
class Slot(Generic[T]):
    """The implementation of one operation.

    Args:
        value: the implementation in use; until something is registered, the default.
        path: "package.module:attribute" that replaces it at the next `get`; empty if there is none.
    """

    value: T
    path: str = ""

    def register(self, path: str) -> None:
        """Use the attribute (or the module) at this path from now on; it is imported at first use."""
        self.path = path

    def get(self) -> T:
        """The implementation in use."""
        if self.path:
            self.value, self.path = pkgutil.resolve_name(self.path), ""
        return self.value


class TwistKernel(Protocol):
    """A twist by its generators as one operator (`resode.operators.generated` has the formula)."""

    def supports(self, u: "Tensor", weight: "Tensor", twist: "Tensor", groups: int) -> bool:
        """Whether the operator takes these; under autocast `u` is already cast."""

    def generated_convolution(
        self, u: "Tensor", weight: "Tensor", bias: "Tensor | None", twist: "Tensor", basis: "Tensor",
        factors: "Tensor", geometry: Sequence[int],
    ) -> "Tensor":  # fmt: skip
        """T(u), with a gradient."""


def _no_program(module: "nn.Module", x: "Tensor") -> None:
    return None


def _no_version() -> str:
    return ""


twist: Slot[TwistKernel | None] = Slot(None)
"""The kernel of a twist by its generators; None: operations of torch (`resode.operators.generated.plain`)."""

backend: Slot["str | Callable[..., Any]"] = Slot("inductor")
"""The backend of `torch.compile` for training steps."""

program: Slot["Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor] | None]"] = Slot(_no_program)
"""(module in evaluation mode, x) -> an inference program for images like x; None: compile by torch."""

version: Slot[Callable[[], str]] = Slot(_no_version)
"""A digest of what is registered, for caches of measurements."""
