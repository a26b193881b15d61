"""Drift: how far the states that a reversible scheme recovers are from the original ones."""

import torch
from torch import Tensor

from resode.gradients.chain import Flow
from resode.gradients.reversible import RandomStates, Reversible
from resode.gradients.watch import relative_error


@torch.no_grad()
def drift(method: Reversible, flow: Flow, y: Tensor) -> Tensor:
    """The largest relative error |c' - c| / |c| of a recovered carry c', at the start and at each anchor.

    Args:
        method: the method, with its anchors.
        flow: the discretised equation; its running statistics are not updated.
        y: the initial state.
    """
    random = RandomStates(y.device)
    recording, replaying = random.recording(flow), random.replaying(flow)
    carry = flow.start(method.promoted(y))
    kept = {0: carry}
    for k in range(flow.steps):
        if method.anchored(k):
            kept[k] = carry
        carry = recording.step(k, carry, record=False)
    worst = y.new_zeros((), dtype=torch.float64)
    for k in reversed(range(flow.steps)):
        carry = replaying.inverse(k, carry)
        if k in kept:
            worst = torch.maximum(worst, relative_error(carry, kept[k]))
            carry = kept[k]
    return worst
