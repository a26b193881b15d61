"""Training or evaluation mode for a while; afterwards every part is as it was.

A module may hold parts in different modes (a frozen normalisation, say); setting the whole back at once would
thaw them.
"""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put `module` in training or evaluation mode within the block."""
    before = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for part, was in before.items():
            part.training = was
