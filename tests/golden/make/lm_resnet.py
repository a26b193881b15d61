"""Golden tensors of LM-ResNet: `python lm_resnet.py PATH` with a checkout of 2prime/LM-ResNet.

Runs the authors' `MResNet` (one k a step) and `MResNetC` (one k a step and channel) in float64 with three
units a stage, widths 16-32-64 replaced by 2-4-8 in the source as it is read, on 32x32 images (its last
pooling needs them). Steps are those of `cifar10_training.ipynb`: cross-entropy, SGD with learning rate 1e-3
and neither momentum nor weight decay, `pretrain=False`. `MResNetC` reads an attribute `noise` that it never
sets, and so fails in training mode as published; here it is False.
"""

import sys
import types
from pathlib import Path

import torch
from recording import perturbed, three_steps, write

COMMIT = "ff49654a50abd76f9fd40342a6d7b82e3ff11c31"
WIDTHS = {"16": "2", "32": "4", "64": "8"}


def original(folder: Path) -> types.ModuleType:
    """The authors' module with smaller widths; the module `init` that it imports is not published."""
    sys.modules["init"] = types.ModuleType("init")
    source = (folder / "MResNet.py").read_text()
    for old, new in WIDTHS.items():
        source = source.replace(f"planes={old}\n", f"planes={new}\n")
        source = source.replace(f"b.planes=={old}:", f"b.planes=={new}:")
        source = source.replace(f"Downsample({old},", f"Downsample({new},")
        source = source.replace(f"Downsample({old}*", f"Downsample({new}*")
        source = source.replace(f"BatchNorm2d({old})", f"BatchNorm2d({new})")
        source = source.replace(f"BatchNorm2d({old} *", f"BatchNorm2d({new} *")
        source = source.replace(f"nn.Linear({old} *", f"nn.Linear({new} *")
        source = source.replace(f",{old}*block.expansion)", f",{new}*block.expansion)")
    source = source.replace("[16,32,64]", "[2,4,8]").replace("Conv2d(3,16,", "Conv2d(3,2,")
    module = types.ModuleType("MResNet")
    exec(compile(source, "MResNet.py", "exec"), module.__dict__)
    return module


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    authors = original(Path(sys.argv[1]))
    for name, kind in (("step", authors.MResNet), ("channel", authors.MResNetC)):
        torch.manual_seed(0)
        net = perturbed(kind(authors.BasicBlock, [3, 3, 3], pretrain=False, num_classes=10), "ks")
        net.noise = False
        about = {
            "repository": "2prime/LM-ResNet",
            "commit": COMMIT,
            "what": f"{kind.__name__}, three units a stage, widths 2-4-8, three steps of SGD at 1e-3",
            "images": "uint8; the networks take images / 255 - 0.5",
        }
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        write(f"lm-resnet-{name}", three_steps(net, optimizer, side=32), about)
