"""Golden tensors of fattorib/ResNets-CIFAR10: `python fattorib.py FOLDER`.

Runs `Train_Model.train` for one epoch of three batches of four images (its batch size of 128 is fixed in the
code) on `ResNet(filters_list, N=3)`, whose widths 16-32-64 are 2-4-8 here.
"""

import sys
from pathlib import Path

from recording import Cifar, Recording, perturbed, scaled, stand_ins
from torch import nn
from torch.utils.data import DataLoader

COMMIT = "4d030eec998d86c5a183d9f537a9e59050b15a74"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of train_model_script.py


def main(folder: Path) -> None:
    """Run the original, and write the file."""
    stand_ins()
    from torchvision import transforms

    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean=MEAN, std=STD)])
    data = Cifar("", transform=pipeline)
    models = folder / "src" / "models"
    net = perturbed(scaled(models / "Model.py", {"64": "8"}).ResNet(filters_list=[2, 4, 8], N=3))
    recording = Recording(net, nn.CrossEntropyLoss)
    training = scaled(models / "Train_Model.py", {"180": "1"}).Train_Model(net, data, data, data)
    training.trainloader = DataLoader(data, batch_size=4, shuffle=True)
    training.testloader = training.valloader = DataLoader(data, batch_size=4)
    training.train()
    recording.save(
        "fattorib-resnet20", "ResNet-20 of widths 2-4-8, three steps of Train_Model.py",
        "fattorib/ResNets-CIFAR10", COMMIT,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
