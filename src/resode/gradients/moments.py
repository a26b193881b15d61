"""Moments of batches: noted where a step runs first, used where a backward pass does it again.

    y = w r (x - m) + b = a x + c,   a = w r,   c = b - m a

m is the mean over a batch and its pixels, r = (v + eps)^(-1/2) with their variance v (Ioffe & Szegedy 2015,
arXiv:1502.03167). To take m and v, x is read twice before it is read for y. A step that is done again has the
same m and r, so that x is read once; on a CPU y has the same bits.
"""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

Known = tuple[nn.BatchNorm2d, Tensor, Tensor]  # m and r of one batch, (C,) each


class Moments:
    """m and r of every `torch.nn.BatchNorm2d` in the steps of a segment, by step and in the order of calls.

    Args:
        modules: of these steps; where one of them is compiled, nothing is noted.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        present = list(modules)
        compiled = any(module._compiled_call_impl is not None for module in present)
        self._norms = [m for m in present if isinstance(m, nn.BatchNorm2d) and not compiled]
        self._known: dict[int, list[Known]] = {}
        self._step: _Step | None = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """While the modules look here, and nowhere else."""
        before = [(norm, vars(norm).get("forward")) for norm in self._norms if _is_plain(norm)]
        try:
            for norm, _ in before:
                vars(norm)["forward"] = _Forward(self, norm)
            yield
        finally:
            for norm, forward in before:
                vars(norm).pop("forward", None)
                if forward is not None:
                    vars(norm)["forward"] = forward

    @contextlib.contextmanager
    def step(self, k: int, noting: bool) -> Iterator[None]:
        """Step k: its moments are noted, or else used."""
        before, self._step = self._step, _Step(self._known.setdefault(k, []), noting)
        try:
            yield
        finally:
            self._step = before

    def forward(self, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        """Of a normalisation: as ever in a region of the step that another checkpoint does again."""
        step = self._step
        if step is None or step.hooks is not _hooks() or not _fits(norm, x):
            return nn.BatchNorm2d.forward(norm, x)
        known = step.next_of(norm)
        y: Tensor = _Normalised.apply(  # type: ignore[no-untyped-call]  # torch has no types
            x, norm.weight, norm.bias, norm, known, step.noted
        )
        return y


def _is_plain(norm: nn.BatchNorm2d) -> bool:
    """Whether nobody else has given it another forward pass."""
    own = isinstance(vars(norm).get("forward"), _Forward | None)
    return own and type(norm).forward is nn.BatchNorm2d.forward


def _hooks() -> object:
    """What packs the tensors that autograd saves now."""
    found = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if found is None else found[0]


@dataclass(frozen=True)
class _Forward:
    moments: Moments
    norm: nn.BatchNorm2d

    def __call__(self, x: Tensor) -> Tensor:
        return self.moments.forward(self.norm, x)


class _Step:
    def __init__(self, known: list[Known], noting: bool) -> None:
        self.noted = known if noting else []
        self.unused = deque(() if noting else known)
        self.hooks = _hooks()

    def next_of(self, norm: nn.BatchNorm2d) -> Known | None:
        """What is known next, where it is of this normalisation."""
        return self.unused.popleft() if self.unused and self.unused[0][0] is norm else None


def _first(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, m and r; the running statistics take m and v in."""
    assert norm.momentum is not None
    running = (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return torch.native_batch_norm(x, norm.weight, norm.bias, *running, True, norm.momentum, norm.eps)


def _fits(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether moments are taken, torch would refuse nothing, and both forms have the same bits."""
    vectors = [norm._parameters.get("weight"), norm._parameters.get("bias")]  # no parametrised ones
    running = [t for t in (norm.running_mean, norm.running_var) if t is not None]
    return (
        norm.training
        and norm.momentum is not None
        and norm.eps > 0
        and x.device.type == "cpu"
        and x.dim() == 4
        and x.numel() > x.shape[1]
        and x.dtype in (torch.float32, torch.bfloat16)
        and (x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous())
        and all(
            t is not None and t.dtype == torch.float32 and t.shape == x.shape[1:2] and t.is_contiguous()
            for t in (*vectors, *running)
        )
        and forward_ad._current_level < 0  # the function below has no forward mode
    )


class _Normalised(torch.autograd.Function):
    """y by known moments, or by those of the batch, which are noted."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, known: Known | None,
        noted: list[Known],
    ) -> Tensor:  # fmt: skip
        if known is None:
            y, m, r = _first(norm, x)
            noted.append((norm, m, r))
        else:
            _, m, r = known
            a = r * weight
            c = torch.addcmul(bias, m, a, value=-1)
            y = F.batch_norm(x, torch.zeros_like(m), torch.ones_like(r), a, c, eps=0.0)
        ctx.save_for_backward(x, weight)
        ctx.known = m, r, norm.eps
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        m, r, eps = ctx.known
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            *gradients, x, weight, None, None, m, r, True, eps, wanted
        )
        return *found, None, None, None
