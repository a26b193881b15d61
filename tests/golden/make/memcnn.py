"""Golden tensors of memcnn: `python memcnn.py FOLDER`.

Builds the experiment `revnet38 cifar10` of its experiments.json with widths 4-4-8-12 in place of
32-32-64-112, and runs its loop `classification.train` for three iterations of four images, on its own loaders
of CIFAR-10: mean image of all twelve images subtracted, crops and flips (of 16x16 pixels, whose size is fixed
as 32x32 in the code), as NumPy's generator draws them. The first reversible unit keeps its input: it would
free the result of the stem's ReLU, whose backward pass the torch of today (2.13) then refuses.
"""

import copy
import functools
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.remove(str(Path(__file__).parent))  # this file has the name of the package
sys.path.append(str(Path(__file__).parent))
sys.path.insert(0, sys.argv[1])

from recording import SIDE, Cifar, Recording, perturbed, stand_ins

COMMIT = "439ac2673093d6e226c4f45927c50b7210036e18"


class Pictures(Cifar):
    """The images as the original expects them."""

    def picture(self, number: int) -> object:
        return Image.fromarray(self.data[number])


def main(folder: Path) -> None:
    """Run the original, and write the file."""
    stand_ins()
    sys.modules["torchvision.datasets"].CIFAR10 = Pictures  # type: ignore[attr-defined]
    np.random.seed(0)  # noqa: NPY002 - the generator that it uses
    from memcnn.data import cifar
    from memcnn.experiment import factory
    from memcnn.experiment.manager import ExperimentManager
    from memcnn.utils.loss import CrossEntropyLossTF

    cifar.random_crop_transform = functools.partial(cifar.random_crop_transform, img_size=(SIDE, SIDE))
    tags = ("cifar10", "revnet38")
    settings = factory.load_experiment_config(str(folder / "memcnn" / "config" / "experiments.json"), tags)
    settings = copy.deepcopy(settings)
    settings["model_params"]["channels_per_layer"] = [4, 4, 8, 12]
    settings["data_loader_params"] |= {"batch_size": 4, "max_epoch": 3}
    with tempfile.TemporaryDirectory() as saved:
        net, optimizer, train, parameters = factory.experiment_config_parser(settings, saved, workers=0)
        net.layer1[0].revblock.keep_input = True
        recording = Recording(perturbed(net), CrossEntropyLossTF)
        manager = ExperimentManager(saved, net, optimizer)
        manager.make_dirs()
        train(manager, start_iter=0, use_cuda=False, **parameters)
    recording.save(
        "memcnn-revnet38", "RevNet-38 of widths 4-8-12, three iterations of its loop",
        "silvandeleemput/memcnn", COMMIT,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
