"""kuangliu: ResNet-18 ... 152 with a stem for small images and shortcut B.

`{"net": ..., "acc": ..., "epoch": ...}` with `conv1, bn1, layer{1..4}.{i}.{conv1,bn1,conv2,bn2}`, in
bottlenecks also `conv3, bn3`, `shortcut.{0,1}` where the shape changes, and `linear`.
"""

from resode.errors import InputError
from resode.interop.formats import Format, State, Translation, count, rename
from resode.models.resnet import DEPTHS
from resode.models.units import BottleneckUnit

RULES = {
    r"(conv1\.\w+|bn1\.\w+|layer[1234]\.\d+\.(conv|bn)[123]\.\w+)": r"\1",
    r"(layer[1234]\.\d+)\.shortcut\.([01]\.\w+)": r"\1.downsample.\2",
    r"linear\.(\w+)": r"fc.\1",
}


def translate(state: State) -> Translation:
    """The tensors are the same; the numbers of units and the kind of unit give the depth."""
    tensors = rename(state, RULES)
    counts = tuple(count(state, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    bottlenecks = any(".conv3." in name for name in state)
    for depth, (unit, _, units) in DEPTHS.items():
        if units == counts and (unit is BottleneckUnit) == bottlenecks:
            return Translation(f"cifar_resnet{depth}", tensors)
    raise InputError(f"there is no network with {counts} units per stage")


FORMAT = Format(
    name="kuangliu",
    summary="cifar_resnet{18,34,50,101,152}: ResNets with a stem for small images",
    translate=translate,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)
