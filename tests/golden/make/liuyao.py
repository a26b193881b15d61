"""Golden tensors of the ResNets with a twist: `python liuyao.py GIT_DIRECTORY`.

GIT_DIRECTORY is `.git` of a clone of liuyao12/pytorch-cifar. The networks are classes in its notebook
`cifar10_with_PDE.ipynb`, which differs from commit to commit; each is read at its own commit, with its widths
replaced by small ones, and runs in float64, coordinates included. Twists are on in the first three stages, as
in the notebook's training. Steps are those of its first epoch: cross-entropy and SGD with momentum 0.9 and
weight decay 5e-4 at the learning rate of its schedule.

    34   410b9bb  ResNet of basic blocks: the notebook whose printed output ends with 94.32 %
    50   26ab4eb  ResNet of bottlenecks: the run that reached 94.72 %
    pde  aa33035  ResNet of PDE blocks, the last commit of the notebook
"""

import ast
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recording import perturbed, three_steps, write
from torch import nn

NOTEBOOK = "cifar10_with_PDE.ipynb"


def classes_of(repository: str, commit: str, width: int) -> dict[str, Any]:
    """The classes of the notebook at a commit, the width of its first stage replaced."""
    shown = subprocess.run(
        ["git", f"--git-dir={repository}", "show", f"{commit}:{NOTEBOOK}"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    cells = ("".join(cell["source"]) for cell in json.loads(shown.stdout)["cells"])
    tree = ast.parse(next(cell for cell in cells if "class BasicBlock" in cell))
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in ast.walk(tree):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        first = isinstance(target, ast.Attribute) and target.attr == "in_channels"
        if first and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(width)
        if isinstance(node, ast.Constant) and node.value == "float32":  # of the coordinates
            node.value = "float64"
    namespace: dict[str, Any] = {"nn": nn, "np": np, "F": F, "torch": torch}
    exec(compile(ast.fix_missing_locations(tree), NOTEBOOK, "exec"), namespace)
    return namespace


NETWORKS = {  # commit, block, units of each stage, width, side of images, learning rate of the first epoch
    "34": (
        "410b9bb92e100fce7fae20714b5b70a3f4f7ef9d", "BasicBlock", (2, 1, 1, 1), 2, 32,
        0.1 * 1 / 5 * math.exp(1 - 1 / 5),
    ),
    "50": (
        "26ab4ebfc7dc0bfc796444b14f07e7b56c02a368", "Bottleneck", (1, 1, 1, 1), 2, 32,
        0.1 * 1 / 10 * math.exp(1 - 1 / 10),
    ),
    "pde": ("aa330350f259dd8c8645a34fc4059ba9fae46162", "PDEBlock", (2, 1, 1, 1), 4, 16, 0.1),
}  # fmt: skip

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    for name, (commit, block, units, width, side, lr) in NETWORKS.items():
        known = classes_of(sys.argv[1], commit, width)
        torch.manual_seed(0)
        net = perturbed(known["ResNet"](known[block], units))
        for layer in (net.layer1, net.layer2, net.layer3):
            for unit in layer:
                unit.twist = True
        about = {
            "repository": "liuyao12/pytorch-cifar",
            "commit": commit,
            "what": f"ResNet({block}, {list(units)}) with {width} channels in stage 1, SGD at {lr!r}",
            "images": "uint8; the networks take images / 255 - 0.5",
        }
        optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        write(f"liuyao-{name}", three_steps(net, optimizer, side), about)
