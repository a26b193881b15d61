"""A CUDA graph in software: captures operations on CPU tensors, and replays them.

It shares these rules with a CUDA graph: capturing changes nothing; host values are frozen; tensors are fixed
addresses, which every replay reads and writes; reading a value from the device is refused. It has no streams,
frees no memory while capturing, and knows nothing of a driver.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
WAITS = {  # operations that read a value or a size from the device, or copy from host memory
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.bincount, aten.equal, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.lift_fresh,
}  # fmt: skip
BY_MASK = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
WRITTEN = ("running_mean", "running_var")  # by normalisations whose schema does not declare it


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def place(tensor):
    return tensor.untyped_storage().data_ptr()


class Watching(TorchDispatchMode):
    """Collects the operations that would synchronise a GPU, except copies to the host."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = func.overloadpacket in BY_MASK and any(t.dtype == torch.bool for t in tensors(args[1]))
        if mask or func.overloadpacket in WAITS:
            self.waits_for(f"{func} waits")
        return func(*args, **(kwargs or {}))

    def waits_for(self, what):
        self.waits.append(what)


class Tape(Watching):
    """The operations of one capture."""

    def __init__(self):
        super().__init__()
        self.calls, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        for each in func._schema.arguments:
            if each.name in WRITTEN or (each.alias_info is not None and each.alias_info.is_write):
                for tensor in tensors(given.get(each.name)):
                    if place(tensor) not in self.made:
                        storage = tensor.untyped_storage()
                        self.before.setdefault(place(tensor), (storage, storage.clone()))
        out = super().__torch_dispatch__(func, types, args, kwargs)
        known = {place(tensor) for tensor in tensors((args, kwargs))}
        self.made |= {place(tensor) for tensor in tensors(out)} - known
        if torch.Tag.inplace_view not in func.tags:  # which changes no memory, but a name of it
            self.calls.append((func, *tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs, out))))
        return out

    def waits_for(self, what):
        raise RuntimeError(f"{what}, which is not permitted here")

    def undo(self):
        for storage, before in self.before.values():
            storage.copy_(before)

    @torch.no_grad()
    def play(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for here, there in zip(tensors(out), tensors(again), strict=True):
                if place(here) != place(there):
                    here.copy_(there)


class Tapes:
    """`resode.training.loop.cuda_graphs.Graphs` on the CPU; counts its captures.

    Args:
        blind: whether obstacles show in the capture only, not in the warm-up.
    """

    def __init__(self, blind=False):
        self.captures, self.blind = 0, blind

    def warm_up(self, work):
        with Watching() as watching:
            results = work()
        return results, "" if self.blind or not watching.waits else watching.waits[0]

    def capture(self, work):
        tape = Tape()
        try:
            with tape:
                results = work()
        finally:
            tape.undo()
        self.captures += 1
        return tape.play, results
