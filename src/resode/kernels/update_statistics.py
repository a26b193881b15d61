"""All running statistics of a graph updated by one operator at its end, instead of one call for each.

It follows `batch_norm.replace`, whose updates it collects.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from resode.kernels.library import register_operator


def _update_statistics(running: Sequence[Tensor], batch: Sequence[Tensor], momentum: Sequence[float]) -> None:
    for statistic, value, weight in zip(running, batch, momentum, strict=True):
        statistic.lerp_(value, weight)


update_statistics = register_operator(
    "update_statistics(Tensor(a!)[] running, Tensor[] batch, float[] momentum) -> ()",
    _update_statistics,
    lambda running, batch, momentum: None,
)
"""Move each running statistic u towards the value of this batch: u <- u + momentum (batch - u)."""


def replace(graph: fx.Graph) -> int:
    """Replace the updates by one operator at the end of the graph; returns 1 if there were any, else 0."""
    updates = [node for node in graph.find_nodes(op="call_method", target="lerp_") if _is_update(node)]
    if not updates:
        return 0
    columns = map(list, zip(*(node.args for node in updates), strict=True))  # running, batch, momentum
    with graph.inserting_before(graph.output_node()):
        graph.call_function(update_statistics, tuple(columns))
    for node in updates:
        graph.erase_node(node)
    return 1


def _is_update(node: fx.Node) -> bool:
    """Whether this updates, from our batch norm, a running statistic that nothing else in the graph reads."""
    running, batch = (*node.args, None, None)[:2]
    if not isinstance(running, fx.Node) or not isinstance(batch, fx.Node) or batch.target != "detach":
        return False
    value = batch.args[0]
    from_batch_norm = (
        isinstance(value, fx.Node)
        and value.target is operator.getitem
        and isinstance(value.args[0], fx.Node)
        and value.args[0].target is torch.ops.resode.batch_norm.default
    )
    return from_batch_norm and running.op == "placeholder" and len(running.users) == 1 and not node.users
