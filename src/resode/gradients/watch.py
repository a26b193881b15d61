"""Watch: warns, in a user's own training loop, of states that a reversible gradient does not recover.

The trainer measures this error itself, each epoch (`Drift` in `resode.training.recipe.network`). Any other
backward pass keeps the first state of its block, and can compare it with the recovered one: one inverse step
more.
"""

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from resode.integrators.base import Carry

LIMIT = 1e-2  # relative; the default of the experiments' drift.limit
SELDOM = 1024

_watching: ContextVar[bool] = ContextVar("watching", default=True)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Check no pass of the context: its gradients are watched elsewhere, or unused."""
    token = _watching.set(False)
    try:
        yield
    finally:
        _watching.reset(token)


@dataclass
class Watch:
    """Decides which passes of a block are checked, and warns once.

    Checked are the passes number 1, 2, 4, 8, ..., 1024, 2048, 3072, ...: a check reads a value of the device.

    Args:
        passes: forward passes so far whose gradient was asked for.
        warned: whether the warning was given.
    """

    passes: int = 0
    warned: bool = False

    @_disable_dynamo
    def due(self, y: Tensor) -> bool:
        """Count a forward pass from y: whether its backward pass is to be checked."""
        if self.warned or not _watching.get():
            return False
        self.passes += 1
        if self.passes & (self.passes - 1) and self.passes % SELDOM:
            return False
        return not (y.is_cuda and torch.cuda.is_current_stream_capturing())

    def warn(self, error: Tensor, what: str, limit: float) -> None:
        """Warn if the error of the recovered states exceeds a limit.

        Args:
            error: relative, a scalar.
            what: the scheme and its steps.
            limit: as `limit` gave it in the forward pass.
        """
        if self.warned or not error > limit:  # a graph may be run backwards again
            return
        self.warned = True
        warnings.warn(
            f"gradient reversible: {what} recover their first state with a relative error of {error:.0e}, so "
            "the gradient is wrong; take gradient checkpointed, anchors ({name: reversible, anchor: 8}), "
            "shorter steps, or float64",
            stacklevel=2,
        )


def limit(y: Tensor) -> float:
    """The larger of `LIMIT` and ten roundings of the precision in which a field is evaluated from y."""
    kind = y.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else y.dtype
    return max(LIMIT, 10 * torch.finfo(dtype).eps)


def relative_error(recovered: Carry, carry: Carry) -> Tensor:
    """|c' - c| / |c| of a recovered carry c' in float64; infinite where it is not finite."""
    errors = [(a - b).double().square().sum() for a, b in zip(recovered, carry, strict=True)]
    sizes = [b.double().square().sum() for b in carry]
    error, scale = torch.stack(errors).sum(), torch.stack(sizes).sum()
    relative = torch.where(error == 0, error, error / scale).sqrt()
    return relative.nan_to_num(nan=torch.inf)
