"""Training or evaluation mode for a while; afterwards every submodule has its earlier mode.

Submodules may be in different modes (a frozen normalisation, say), so one `train()` would not restore them.
"""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module in training or evaluation mode within the context."""
    before = {child: child.training for child in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for child, was in before.items():
            child.training = was
