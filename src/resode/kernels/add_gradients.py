"""The sum of two gradients, taken inside the convolution that computes one of them.

The gradient of an activation that two branches use, such as the input of a residual unit, is a sum. If one
summand comes from our convolution, that adds the other one before it rounds and stores the result.
"""

import torch
from torch import Tensor, fx

from resode.kernels.nodes import has_static_shape, only_user


def replace(graph: fx.Graph) -> int:
    """Give each addition to the image gradient of a convolution to that convolution; returns their number."""
    position = {node: k for k, node in enumerate(graph.nodes)}
    replaced = 0
    for node in graph.find_nodes(op="call_function", target=torch.ops.resode.convolution_backward.default):
        image = next((user for user in node.users if user.args[1] == 0), None)
        addition = None if image is None else only_user(image)
        if image is None or addition is None or addition.target is not torch.ops.aten.add.Tensor:
            continue
        other = next((each for each in addition.args if each is not image), None)
        if not isinstance(other, fx.Node) or position[other] > position[node] or addition.kwargs:
            continue
        if node.args[-1] is None and _same_kind(image, other):
            node.args = (*node.args[:-1], other)
            addition.replace_all_uses_with(image)
            graph.erase_node(addition)
            replaced += 1
    return replaced


def _same_kind(one: fx.Node, other: fx.Node) -> bool:
    """Whether both values are tensors of the same shape and dtype."""
    a, b = one.meta.get("val"), other.meta.get("val")
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return has_static_shape(a) and a.dtype == b.dtype and a.shape == b.shape
