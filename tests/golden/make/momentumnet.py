"""Golden tensors of momentumnet: `python momentumnet.py FOLDER`.

Runs `train_resnet` of its trainer_CIFAR_10.py for one epoch of three batches of four images at the learning
rate of run_CIFAR_10.py, on an `MResNet` of basic blocks with (3, 3, 2, 2) blocks and widths 2-4-6-8 in place
of 64-128-256-512, with `use_backprop=True`. (The default of the original stores the velocity as an integer,
gives it back in single precision, multiplies it by 58983 / 65536 and not 0.9, and moves running statistics
twice a step.)
"""

import sys
import types
from pathlib import Path

import numpy as np

sys.path.remove(str(Path(__file__).parent))  # this file has the name of the package
sys.path.append(str(Path(__file__).parent))

from recording import Recording, perturbed, scaled, stand_ins
from torch import nn

COMMIT = "7f4c8ab38db0191127dd5539ebabfcb79bfcbbcc"
WIDTHS = {"64": "2", "128": "4", "256": "6", "512": "8"}


def main(folder: Path) -> None:
    """Run the original, and write the file."""
    stand_ins()
    package = types.ModuleType("momentumnet")  # without what its __init__ imports
    package.__path__ = [str(folder / "momentumnet")]
    sys.modules["momentumnet"] = package
    models = sys.modules["momentumnet.models"] = scaled(folder / "momentumnet" / "models.py", WIDTHS)
    trainer = scaled(folder / "momentumnet" / "trainer_CIFAR_10.py", {"128": "4"})
    recordings = []

    def network(num_classes: int, init_speed: int, gamma: float, use_backprop: bool) -> nn.Module:
        net = models.MResNet(
            models.BasicBlock, models.MBasicBlock, [3, 3, 2, 2], num_classes,
            init_speed=init_speed, gamma=gamma, use_backprop=use_backprop,
        )  # fmt: skip
        recordings.append(Recording(perturbed(net), nn.CrossEntropyLoss))
        return net

    trainer.mResNet18, trainer.n_workers = network, 0
    trainer.train_resnet(np.array([0.01]), "mresnet18", use_backprop=True, save=False)
    what = "MResNet of widths 2-4-6-8, three steps of trainer_CIFAR_10.py"
    recordings[0].save("momentumnet-mresnet", what, "michaelsdr/momentumnet", COMMIT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
