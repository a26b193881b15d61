"""A backend of `torch.compile` that puts our operators into the graph of a training step.

Each entry of `REPLACEMENTS` replaces one pattern of operations by one operator and has a file of its own;
Inductor, torch's compiler, compiles the result. Where nothing matches (on a GPU, in evaluation mode,
without a C++ compiler) this backend is Inductor alone.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, fx

from resode.kernels import add_gradients, batch_norm, convolution, subsample, update_statistics

# By name, in order: functions that change a graph and return the number of operators put in.
REPLACEMENTS: dict[str, Callable[[fx.Graph], int]] = {
    "batch_norm": batch_norm.replace,
    "update_statistics": update_statistics.replace,
    "convolution": convolution.replace,
    "subsample": subsample.replace,
    "add_gradients": add_gradients.replace,
}
_AFTER_AUTOGRAD = ("add_gradients",)  # these need the graph of the backward pass


def fused(graph: fx.GraphModule, inputs: list[Tensor], without: Collection[str] = ()) -> Callable[..., Any]:
    """Compile a graph: `torch.compile(module, backend=fused)`.

    `without` names replacements to skip, so that the gain of each can be measured:
    `torch.compile(module, backend=functools.partial(fused, without={"subsample"}))`.
    """
    from torch._inductor.compile_fx import compile_fx

    replace(graph, without)
    options: dict[str, Any] = _isa_options()
    if "add_gradients" not in without:
        options["post_grad_custom_pre_pass"] = _post_grad_pass()
    compiled: Callable[..., Any] = compile_fx(graph, inputs, config_patches=options)  # type: ignore[assignment]  # declared too loosely
    return compiled


def replace(graph: fx.GraphModule, without: Collection[str] = ()) -> dict[str, int]:
    """Apply the replacements for the forward pass; returns the number of operators put in by each."""
    skipped = {*without, *_AFTER_AUTOGRAD}
    counts = {name: change(graph.graph) for name, change in REPLACEMENTS.items() if name not in skipped}
    if any(counts.values()):
        graph.graph.lint()
        graph.recompile()
    return counts


def _isa_options() -> dict[str, bool]:
    """Skip Inductor's probes of the instruction set, where our kernels run bf16 instructions already.

    Without a cache Inductor compiles and loads a small program for each instruction set.
    """
    from torch._inductor import config

    return {"cpp.vec_isa_ok": True} if config.cpp.vec_isa_ok is None and convolution.available() else {}


@functools.cache
def _post_grad_pass() -> Callable[[fx.Graph], None]:
    """`add_gradients` as a pass of Inductor, which caches compiled graphs by the passes' digests."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class AddGradients(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            REPLACEMENTS["add_gradients"](graph)

        def uuid(self) -> bytes:
            return get_hash_for_files((add_gradients.__file__,))

    return AddGradients()
