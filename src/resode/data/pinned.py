"""Named data sets on the Hugging Face hub, pinned to a revision: classes, files and their hashes.

Each revision and hash was found in at least two independent public records. A hash that was not is None; the
file is then compared with the hub's own hash.
"""

from dataclasses import dataclass
from typing import Final

from resode.data.hub import Pin


@dataclass(frozen=True)
class PinnedDataset:
    """A named data set.

    Attributes:
        name: its name in `--data` and `load`.
        summary: one line of description.
        shape: `(C, H, W)` of its images.
        classes: the class names.
        pin: revision and files on the hub.
        sizes: number of training and test images.
        folder: folder name used by other tools, searched in `RESODE_DATA` after `name`.
        fingerprint: `images.fingerprint` of the decoded data; None if it was not recorded.
    """

    name: str
    summary: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    pin: Pin
    sizes: tuple[int, int]
    folder: str | None = None
    fingerprint: str | None = None


_CIFAR10: Final = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100: Final = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm"""
_STL10: Final = "airplane bird car cat deer dog horse monkey ship truck"
_FASHION: Final = "T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot"

PINNED_DATASETS: Final = (
    PinnedDataset(
        "cifar10",
        "60,000 colour photographs of 10 classes (Krizhevsky 2009)",
        (3, 32, 32),
        tuple(_CIFAR10.split()),
        Pin(
            "uoft-cs/cifar10",
            "0b2714987fa478483af9968de7c934580d0bb9a2",
            {
                "plain_text/train-00000-of-00001.parquet": (
                    "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883"
                ),
                "plain_text/test-00000-of-00001.parquet": (
                    "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de"
                ),
            },
        ),
        (50_000, 10_000),
        "cifar-10-batches-py",
        "fc732a36c4e1a4c37a7daec9bc25c642461585d37a22763b749532267865d748",
    ),
    PinnedDataset(
        "cifar100",
        "60,000 colour photographs of 100 classes (Krizhevsky 2009)",
        (3, 32, 32),
        tuple(_CIFAR100.split()),
        Pin(
            "uoft-cs/cifar100",
            "aadb3af77e9048adbea6b47c21a81e47dd092ae5",
            {
                "cifar100/train-00000-of-00001.parquet": (
                    "694865d6b990e234804f01268586c41e88bcbbb75e20858432c05ad4081aca23"
                ),
                "cifar100/test-00000-of-00001.parquet": (
                    "98776c529bb146a9c791229df74a5cf076be9b43d82dbbd334b6a7788d73dc68"
                ),
            },
        ),
        (50_000, 10_000),
        "cifar-100-python",
    ),
    PinnedDataset(
        "stl10",
        "13,000 labelled colour photographs of 10 classes (Coates, Ng, Lee 2011)",
        (3, 96, 96),
        tuple(_STL10.split()),
        Pin(
            "tanganke/stl10",
            "49ae7f94508f7feae62baf836db284306eab0b0f",
            {"data/train-00000-of-00001.parquet": None, "data/test-00000-of-00001.parquet": None},
        ),
        (5_000, 8_000),
    ),
    PinnedDataset(
        "mnist",
        "70,000 handwritten digits (LeCun, Cortes, Burges 1998)",
        (1, 28, 28),
        tuple("0123456789"),
        Pin(
            "ylecun/mnist",
            "77f3279092a1c1579b2250db8eafed0ad422088c",
            {
                "mnist/train-00000-of-00001.parquet": (
                    "f2c01285a9f89399335b00ee4e8d499dc4e46db5e39c74903ce5618d895eb3bf"
                ),
                "mnist/test-00000-of-00001.parquet": (
                    "d49fcf556ce25b002b302e318ce4a11098bbfe5d4499c3f35d7c72297c52374b"
                ),
            },
        ),
        (60_000, 10_000),
    ),
    PinnedDataset(
        "fashion_mnist",
        "70,000 grey pictures of 10 kinds of clothing (Xiao, Rasul, Vollgraf 2017)",
        (1, 28, 28),
        tuple(_FASHION.split("|")),
        Pin(
            "zalando-datasets/fashion_mnist",
            "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2",
            {
                "fashion_mnist/train-00000-of-00001.parquet": None,
                "fashion_mnist/test-00000-of-00001.parquet": None,
            },
        ),
        (60_000, 10_000),
    ),
)
