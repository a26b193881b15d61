"""Fields: right-hand sides f(y) of fixed width, the layer functions of a network.

A field is specified by a frozen value that is built for a width; the module that it builds knows nothing of
time. Its parameters are one value of theta(t), its buffers the running statistics of one evaluation.
"""

from abc import ABC, abstractmethod

from torch import nn


class Field(ABC):
    """A specification; every concrete one is a frozen dataclass."""

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module (N, width, H, W) -> (N, width, H, W) with initial parameters.

        Raises:
            InputError: options that cannot be, or do not fit the width.
        """

    @property
    def name(self) -> str:
        """How a block calls it."""
        return type(self).__name__

    @property
    def equation(self) -> str:
        """f, in a line."""
        return ""

    def remark(self) -> str | None:
        """What a user should know before choosing it, in a line."""
        return None
