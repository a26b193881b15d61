"""Fields: right-hand sides f(y) of fixed width, the layer functions of a network.

A field is specified by a frozen value that is built for a width; the module that it builds knows nothing of
time. Its parameters are one value of theta(t), its buffers the running statistics of one evaluation.
"""

from abc import ABC, abstractmethod

from torch import nn


class Field(ABC):
    """Specification of a field; every concrete one is a frozen dataclass."""

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """Build a module (N, width, H, W) -> (N, width, H, W) with initial parameters.

        Raises:
            InputError: invalid options, or options that do not fit the width.
        """

    @property
    def name(self) -> str:
        """Display name, shown by a block."""
        return type(self).__name__

    @property
    def equation(self) -> str:
        """The formula of f, in one line."""
        return ""

    def remark(self) -> str | None:
        """Advice to the user before training, in one line; None if there is none."""
        return None
