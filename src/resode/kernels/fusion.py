"""A backend of `torch.compile` that puts our operators into the graph of a training step.

Each entry of `REPLACEMENTS` replaces one pattern of operations by one operator and has a file of its own;
Inductor, torch's compiler, compiles the result. Where nothing matches (on a GPU, in evaluation mode,
without a C++ compiler) this backend is Inductor alone.
"""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, fx

from resode.kernels import batch_norm, convolution

# By name, in order: functions that change a graph and return the number of operators put in.
REPLACEMENTS: dict[str, Callable[[fx.Graph], int]] = {
    "batch_norm": batch_norm.replace,
    "convolution": convolution.replace,
}


def fused(graph: fx.GraphModule, inputs: list[Tensor], without: Collection[str] = ()) -> Callable[..., Any]:
    """Compile a graph: `torch.compile(module, backend=fused)`.

    `without` names replacements to skip, so that the gain of each can be measured:
    `torch.compile(module, backend=functools.partial(fused, without={"batch_norm"}))`.
    """
    from torch._inductor.compile_fx import compile_fx

    replace(graph, without)
    compiled: Callable[..., Any] = compile_fx(graph, inputs, config_patches=_isa_options())  # type: ignore[assignment]  # declared too loosely
    return compiled


def replace(graph: fx.GraphModule, without: Collection[str] = ()) -> dict[str, int]:
    """Apply the replacements; returns the number of operators put in by each."""
    counts = {name: change(graph.graph) for name, change in REPLACEMENTS.items() if name not in without}
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
