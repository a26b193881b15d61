"""Counting of the passes over a batch that batch normalisation makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Counting(TorchDispatchMode):
    """Counts how often the moments of a batch are computed."""

    def __init__(self):
        super().__init__()
        self.computed = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.native_batch_norm.default and args[5]:
            self.computed += 1
        return function(*args, **(kwargs or {}))
