"""Drift: how far the states that a reversible scheme recovers are from the first ones."""

import torch
from torch import Tensor

from resode.gradients.chain import Flow
from resode.gradients.reversible import Randomness, Reversible


@torch.no_grad()
def drift(method: Reversible, flow: Flow, y: Tensor) -> Tensor:
    """The largest relative error |c' - c| / |c| of a recovered carry c', at the start and at each anchor.

    Args:
        method: says where anchors are.
        flow: the equation, discretised; its running statistics are not touched.
        y: the first state.
    """
    randomness = Randomness(y.device)
    f = randomness.noted(flow.rhs(record=False))
    carry = flow.start(method.prepared(y))
    kept = {0: carry}
    for k in range(flow.steps):
        if method.anchored(k):
            kept[k] = carry
        carry = flow.integrator.step(k, flow.grid, f, carry, flow.numbers)
    f = randomness.repeated(flow.rhs(record=False))
    worst = y.new_zeros((), dtype=torch.float64)
    for k in reversed(range(flow.steps)):
        carry = flow.integrator.inverse(k, flow.grid, f, carry, flow.numbers)
        if k in kept:
            first = kept[k]
            errors = [(a - b).double().square().sum() for a, b in zip(carry, first, strict=True)]
            sizes = [b.double().square().sum() for b in first]
            error, scale = torch.stack(errors).sum(), torch.stack(sizes).sum()
            relative = torch.where(error == 0, error, error / scale).sqrt()
            worst = torch.maximum(worst, relative.nan_to_num(nan=torch.inf))
            carry = first
    return worst
