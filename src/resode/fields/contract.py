"""What a right-hand side has to keep: the shape of the state, and nothing of an evaluation but statistics.

A field is evaluated at several times with other parameters. The running statistics of torch's normalisation
layers are kept apart for each evaluation; any other buffer that a forward pass writes would mix them.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from resode.abstract import dtype_of, empty_tensors
from resode.errors import InputError
from resode.mode import mode
from resode.statistics import running_statistics

SIDES = (32, 16, 8, 28, 14, 7, 64)  # of images; some modules take one size alone


def check_nodes(name: str, nodes: Sequence[nn.Module]) -> None:
    """Refuse fields that theta(t) cannot interpolate between.

    Raises:
        InputError: one module at several nodes, parameters that differ in name or shape, or that have no
            shape yet.
    """
    lazy = [key for node in nodes for key, p in node.named_parameters() if is_lazy(p)]
    if lazy:
        raise InputError(f"field {name}: the parameter {lazy[0]} has no shape yet; give its channels")
    if len({id(node) for node in nodes}) < len(nodes):
        raise InputError(
            f"field {name}: returned one module for several control nodes; make a new one in each call, or "
            "take interpolation='shared'"
        )
    first, *others = ({key: p.shape for key, p in node.named_parameters()} for node in nodes)
    for other in others:
        if other != first:
            key = sorted(first.items() ^ other.items())[0][0]
            raise InputError(
                f"field {name}: the parameter {key} differs between control nodes; each call has to make the "
                "same module"
            )


def check_shape(name: str, node: nn.Module, width: int) -> None:
    """Refuse a field that changes the shape of the state.

    Raises:
        InputError: f(y) has other channels, another size, or is no tensor; or f takes other channels.
    """
    for side in SIDES:
        value, _ = _evaluated(node, width, side)
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise InputError(f"field {name}: its forward returns a {type(value).__name__}, not a tensor")
        given, got = (width, side, side), tuple(value.shape[1:])
        if value.ndim != 4 or got[0] != width:
            what, fix = "number of channels", f"a right-hand side of width {width} keeps {width}"
        elif got != given:
            what, fix = "size of images", "pad its convolutions (padding=1 for 3x3), and take no strides"
        else:
            return
        raise InputError(f"field {name}: changes the {what}, {_times(given)} to {_times(got)}; {fix}")
    for other in sorted({n for p in node.parameters() for n in p.shape[:2]} - {width}):
        if any(_evaluated(node, other, side)[0] is not None for side in SIDES):
            raise InputError(f"field {name}: takes {other} channels where the state has the width {width}")


def written_buffers(node: nn.Module, width: int) -> tuple[str, ...]:
    """The buffers that a forward pass in training mode writes, running statistics apart."""
    for side in SIDES if any(True for _ in node.buffers()) else ():
        value, written = _evaluated(node, width, side)
        if value is not None:
            return written
    return ()


def _evaluated(node: nn.Module, width: int, side: int) -> tuple[object, tuple[str, ...]]:
    """f(y) of a copy on the meta device and the buffers it writes; None where that fails."""
    try:
        trial = copy.deepcopy(node)
        tensors = empty_tensors(trial, torch.device("meta"))
        before = {key: (id(t), t._version) for key, t in tensors.items()}
        y = torch.empty(2, width, side, side, dtype=dtype_of(node), device="meta")
        with mode(trial, training=True), torch.no_grad():
            value = functional_call(trial, tensors, (y,), tie_weights=False)
    except Exception:  # of a size that it does not take, or of an operation that needs data
        return None, ()
    statistics, buffers = running_statistics(node), dict(node.named_buffers())
    changed = (key for key, t in tensors.items() if before.get(key) != (id(t), t._version))
    return value, tuple(key for key in changed if key in buffers and key not in statistics)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
