"""Golden tensors of akamaster/pytorch_resnet_cifar10: `python akamaster.py FOLDER`.

Runs `main` of its trainer.py for one epoch of three batches of four images, with `--arch=resnet20`, whose
widths 16-32-64 are 2-4-8 here.
"""

import sys
import tempfile
from pathlib import Path

from recording import Recording, perturbed, scaled, stand_ins
from torch import nn

COMMIT = "d5489e8995e81e91ce6b1d69dcc98ad579b0b153"


def main(folder: Path) -> None:
    """Run the original, and write the file."""
    stand_ins()
    resnet = sys.modules["resnet"] = scaled(folder / "resnet.py", {"16": "2", "32": "4", "64": "8"})
    net = perturbed(resnet.resnet20())
    recording = Recording(net, nn.CrossEntropyLoss)
    resnet.resnet20 = lambda: net
    sys.path.insert(0, str(folder))
    import trainer

    with tempfile.TemporaryDirectory() as saved:
        sys.argv = ["trainer.py", "--arch=resnet20", "--epochs=1", "-b=4", "-j=0", f"--save-dir={saved}"]
        trainer.main()
    recording.save(
        "akamaster-resnet20", "ResNet-20 of widths 2-4-8, three steps of trainer.py",
        "akamaster/pytorch_resnet_cifar10", COMMIT,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
