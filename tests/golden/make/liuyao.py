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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
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


def perturbed(net: nn.Module) -> nn.Module:
    """Norms and biases away from their initial 1 and 0, so that each of them matters."""
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.2 * torch.rand_like(tensor))
    return net


def golden(net: nn.Module, side: int, lr: float) -> dict[str, torch.Tensor]:
    """State, inputs, logits, gradients and the state after three steps."""
    kept = {f"state.{name}": tensor.clone() for name, tensor in net.state_dict().items()}
    images = torch.randint(0, 256, (3, 4, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, 10, (3, 4))
    kept |= {"images": images, "labels": labels}
    net.eval()
    with torch.no_grad():
        kept["logits"] = net(images[0] / 255.0 - 0.5)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(net(images[step] / 255.0 - 0.5), labels[step])
        loss.backward()
        if step == 0:
            gradients = ((n, p.grad) for n, p in net.named_parameters() if p.grad is not None)
            kept |= {f"gradient.{name}": g.clone() for name, g in gradients}
        optimizer.step()
        losses.append(loss.item())
    kept |= {f"after.{name}": tensor for name, tensor in net.state_dict().items()}
    kept["losses"] = torch.tensor(losses)
    return {name: tensor.contiguous() for name, tensor in kept.items()}


NETWORKS = {  # commit, block, units of each stage, width, side of images, learning rate of the first epoch
    "34": (
        "410b9bb92e100fce7fae20714b5b70a3f4f7ef9d",
        "BasicBlock",
        (2, 1, 1, 1),
        2,
        32,
        0.1 * 1 / 5 * math.exp(1 - 1 / 5),
    ),
    "50": (
        "26ab4ebfc7dc0bfc796444b14f07e7b56c02a368",
        "Bottleneck",
        (1, 1, 1, 1),
        2,
        32,
        0.1 * 1 / 10 * math.exp(1 - 1 / 10),
    ),
    "pde": ("aa330350f259dd8c8645a34fc4059ba9fae46162", "PDEBlock", (2, 1, 1, 1), 4, 16, 0.1),
}

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
        save_file(golden(net, side, lr), Path(__file__).parents[1] / f"liuyao-{name}.safetensors", about)
