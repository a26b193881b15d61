"""A CUDA graph in software: records the operations on tensors of the CPU, and does them again.

As of a graph: recording changes nothing; numbers of the host are those of the recording for ever; tensors are
places of memory, which every replay reads and writes again; a number that is asked of the device is refused.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

READ = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
MADE_OF_NUMBERS = {torch.ops.aten.lift_fresh.default}  # a copy from the host's memory

UNTOLD = ("running_mean", "running_var")  # are written by normalisations whose schema does not say so


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def place(tensor):
    return tensor.untyped_storage().data_ptr()


class Asking(TorchDispatchMode):
    """Refuses operations that wait for the device, or send it numbers of the host's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READ | MADE_OF_NUMBERS:
            raise RuntimeError(f"{func} is not permitted here")
        return func(*args, **(kwargs or {}))


class Tape(Asking):
    """The operations of one recording."""

    def __init__(self):
        super().__init__()
        self.calls, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        for each in func._schema.arguments:
            if each.name in UNTOLD or (each.alias_info is not None and each.alias_info.is_write):
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
    """A recorder (`resode.training.capture.Recorder`) of the CPU; counts its recordings."""

    recordings = 0

    def apart(self):
        return contextlib.nullcontext()

    def record(self, work):
        tape = Tape()
        try:
            with tape:
                results = work()
        finally:
            tape.undo()
        self.recordings += 1
        return tape.play, results
