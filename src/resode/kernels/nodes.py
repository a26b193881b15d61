"""Nodes of a traced graph (`torch.fx`): what a replacement asks about the operations that it may replace."""

from typing import Any

from torch import Tensor, fx

_INPLACE = ("batch_norm", "iadd", "isub", "imul", "itruediv", "ipow", "setitem")
_MODES = ("_set_grad_enabled", "_enter", "_exit", "set_grad")


def arguments(node: fx.Node, defaults: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; `defaults` names all of them in order."""
    return defaults | dict(zip(defaults, node.args, strict=False)) | node.kwargs


def example(node: Any) -> Tensor | None:
    """A tensor without data that has the shape and dtype of a node's value; None for other values."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def has_static_shape(x: Tensor) -> bool:
    """Whether every dimension is a number, not a symbol."""
    return all(isinstance(n, int) for n in x.shape)


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that uses this one; None if there are more or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def can_move(begin: fx.Node, end: fx.Node) -> bool:
    """Whether `begin` may be computed at `end`: nothing between them changes a tensor or a mode in place."""
    node = begin.next
    while node is not end:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        mutates = name.endswith("_") or name in _INPLACE or node.kwargs.get("inplace")
        if node.op in ("call_function", "call_method") and (mutates or name.startswith(_MODES)):
            return False
        node = node.next
    return True
