"""ResNet-18 ... 152 (He et al. 2016, arXiv:1512.03385, table 1) with a stem for small images.

The stem is a 3x3 convolution without pooling, so that 32x32 images reach the last of the four stages at
4x4; the stages have 64, 128, 256 and 512 channels (times 4 with bottlenecks) and shortcut B.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from resode.errors import InputError
from resode.fields.batch_norm import BatchNorm2d
from resode.models.catalogue import by_depth
from resode.models.layouts import Layout, LayoutRule, bottlenecks, size_mistakes, stride_first
from resode.models.residual import ResidualNetwork
from resode.models.units import (
    ActivatedUnit,
    BasicUnit,
    BottleneckUnit,
    Convolution,
    Unit,
    shortcut_b,
    stage,
    zero_branches,
)

DEPTHS: dict[int, tuple[type[Unit], LayoutRule, tuple[int, int, int, int]]] = {
    18: (BasicUnit, stride_first, (2, 2, 2, 2)),
    34: (BasicUnit, stride_first, (3, 4, 6, 3)),
    50: (BottleneckUnit, bottlenecks, (3, 4, 6, 3)),
    101: (BottleneckUnit, bottlenecks, (3, 4, 23, 3)),
    152: (BottleneckUnit, bottlenecks, (3, 8, 36, 3)),
}


class ResNet(ResidualNetwork):
    """Images (N, in_channels, H, W) to logits (N, classes), H and W from 4 on.

    Args:
        unit: `BasicUnit`, `BottleneckUnit` or `ActivatedUnit`.
        layout: channels and strides of the units of the four stages.
        classes: the number of logits.
        in_channels: the channels of an image.
    """

    def __init__(self, unit: type[Unit], layout: Layout, *, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        width = layout[0][0].inputs
        self.conv1 = Convolution(in_channels, width)
        self.bn1 = BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            stage(unit, specs, shortcut_b) for specs in layout
        )
        self.fc = nn.Linear(layout[-1][-1].outputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))  # (N, 64, H, W)
        y = self.through_units(y)  # (N, 512 or 2048, H / 8, W / 8)
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


@by_depth("cifar_resnet", DEPTHS, summary="ResNet-{depth} with a stem for small images")
def cifar_resnet(
    depth: int,
    *,
    classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (64, 128, 256, 512),
    activated: bool = False,
    zero_init: bool = False,
    gradient: Any = "stored",
) -> ResNet:
    """ResNet-18, 34, 50, 101 or 152 for small images.

    Args:
        depth: 18, 34, 50, 101 or 152.
        classes: the number of logits.
        in_channels: the channels of an image.
        widths: the channels of the four stages (for bottlenecks, of the 3x3 convolution).
        activated: units y <- S u + K2 relu(b2 K1 u), u = relu(b1 y), for 18 and 34: the network of the
            published ResNets with a twist (liuyao12).
        zero_init: start every residual branch from F = 0.
        gradient: stored, or checkpointed (`resode.gradients.Checkpointed`).

    Raises:
        InputError: an unknown depth, activated units with bottlenecks, or sizes that are not positive.
    """
    if depth not in DEPTHS:
        raise InputError(f"no ResNet of depth {depth}: choose one of {', '.join(map(str, DEPTHS))}")
    mistakes = size_mistakes(widths, 4, classes=classes, in_channels=in_channels)
    if mistakes:
        raise InputError(*mistakes)
    unit, rule, counts = DEPTHS[depth]
    if activated:
        if unit is BottleneckUnit:
            raise InputError(f"activated: ResNet-{depth} has bottlenecks; take depth 18 or 34")
        unit = ActivatedUnit
    network = ResNet(unit, rule(widths, counts), classes=classes, in_channels=in_channels)
    if zero_init:
        zero_branches(network)
    network.set_gradient(gradient)
    return network
