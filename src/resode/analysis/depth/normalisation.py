"""The affine maps of normalisations with running statistics, as functions of time.

    N(y) = w (y - m) / sqrt(v + eps) + b = a y + c,    a = w / sqrt(v + eps),  c = b - m a

m and v are the running statistics of one evaluation of the network's own scheme. Between evaluations they
have no meaning; a and c do, and are interpolated linearly (within each piece of piecewise constant controls;
evaluations at the same time are averaged). A right-hand side with these maps is a function of t and y alone,
so that it can be solved on any grid.
"""

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor, nn

from resode.blocks import DynamicBlock
from resode.controls import interpolation_weights
from resode.statistics import has_running_statistics

Affine = tuple[Tensor, Tensor]  # a and c, (C,) each
Maps = Mapping[str, Affine]  # by the path of the normalisation in the field


class AffineMaps:
    """a(t) and c(t) of every normalisation with running statistics in a block.

    Args:
        block: in evaluation mode.
    """

    def __init__(self, block: DynamicBlock) -> None:
        self._block = block
        self._known: dict[tuple[str, int], list[tuple[float, Maps]]] = {}
        if not block.statistics:
            return
        found = sorted(((e.part, self._piece(e.time), e.time), n) for n, e in enumerate(block.evaluations))
        for (part, piece, time), same in groupby(found, lambda pair: pair[0]):
            maps = [_maps(block, n) for _, n in same]
            self._known.setdefault((part, piece), []).append((time, _mean(maps)))

    def tensors(self, part: str, time: float, piece_of: float) -> dict[str, Tensor]:
        """Parameters and buffers of the field with which its normalisations are a(t) y + c(t).

        Args:
            part: of the scheme's right-hand side.
            time: t.
            piece_of: a time in the same piece of piecewise constant controls.
        """
        if not self._known:
            return {}
        piece = self._piece(piece_of)
        known = self._known.get((part, piece)) or sorted(
            (pair for key, pairs in self._known.items() if key[0] == part for pair in pairs),
            key=lambda pair: pair[0],
        )
        node = self._block.controls.node(0, part)
        found: dict[str, Tensor] = {}
        for path, (a, c) in _at(known, time).items():
            found |= _as_tensors(node.get_submodule(path), path, a, c)
        return found

    def _piece(self, time: float) -> int:
        """The piece of piecewise constant controls at a time; other controls have one."""
        controls = self._block.controls
        if controls.interpolation != "constant":
            return 0
        return interpolation_weights(controls.grid, "constant", time)[0][0]


def _maps(block: DynamicBlock, e: int) -> dict[str, Affine]:
    """The maps at evaluation e of the network's own scheme."""
    evaluation = block.evaluations[e]
    theta = block.controls.at(evaluation.time, evaluation.part)
    statistics = dict(block.statistics[e].named_buffers())
    found = {}
    for path, module in block.controls.node(0, evaluation.part).named_modules():
        if not has_running_statistics(module):
            continue
        mean, variance = (statistics[_join(path, key)] for key in ("running_mean", "running_var"))
        weight, bias = (theta.get(_join(path, key)) for key in ("weight", "bias"))
        a = (variance + module.eps).rsqrt()
        a = a if weight is None else weight * a
        found[path] = (a, -mean * a if bias is None else bias - mean * a)
    return found


def _mean(maps: list[dict[str, Affine]]) -> Maps:
    first = maps[0]
    if len(maps) == 1:
        return first
    pairs = {path: [each[path] for each in maps] for path in first}
    return {
        path: (torch.stack([a for a, _ in known]).mean(0), torch.stack([c for _, c in known]).mean(0))
        for path, known in pairs.items()
    }


def _at(known: list[tuple[float, Maps]], time: float) -> Maps:
    """Linear in time between the known maps, constant beyond them."""
    after = next((k for k, (t, _) in enumerate(known) if t >= time), len(known))
    if after == 0 or after == len(known):
        return known[min(after, len(known) - 1)][1]
    (t0, first), (t1, second) = known[after - 1 : after + 1]
    w = (time - t0) / (t1 - t0)
    return {
        path: (torch.lerp(a, second[path][0], w), torch.lerp(c, second[path][1], w))
        for path, (a, c) in first.items()
    }


def _as_tensors(norm: nn.Module, path: str, a: Tensor, c: Tensor) -> dict[str, Tensor]:
    """The tensors of a normalisation that make it a y + c in evaluation mode."""
    eps = float(norm.eps)  # type: ignore[arg-type]  # a number in each of torch's norms
    if norm.weight is None:  # without parameters: a > 0
        mean, variance = -c / a, 1 / a.square() - eps
        return {_join(path, "running_mean"): mean, _join(path, "running_var"): variance}
    return {
        _join(path, "weight"): a,
        _join(path, "bias"): c,
        _join(path, "running_mean"): torch.zeros_like(a),
        _join(path, "running_var"): torch.full_like(a, 1 - eps),
    }


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
