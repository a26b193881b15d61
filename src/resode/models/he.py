"""He et al.'s ResNets for CIFAR (2016, arXiv:1512.03385, section 4.2), of any depth 6n + 2.

A 3x3 convolution; three stages of n units at 16, 32 and 64 channels, each stage at half the resolution of
the one before; global average; one linear layer: 6n + 2 layers with weights. `he_preact_resnet` has the
pre-activation units of He et al. 2016b (arXiv:1603.05027) and norm and ReLU once more before the average.

Depth is time: a unit y <- y + F(y) is a step of Euler's method for y' = F(y, theta(t)).
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from resode.errors import InputError
from resode.fields.batch_norm import BatchNorm2d
from resode.models.catalogue import by_depth
from resode.models.layouts import Layout, LayoutRule, size_mistakes, stride_first, stride_last
from resode.models.residual import ResidualNetwork
from resode.models.units import (
    BasicUnit,
    Convolution,
    PreactivationUnit,
    Shortcut,
    fan_in_weights,
    shortcut_a,
    shortcut_b,
    stage,
    zero_branches,
)

LISTED = (20, 32, 44, 56, 110, 1202)  # of the depths 6n + 2


class HeResNet(ResidualNetwork):
    """Images (N, in_channels, H, W) to logits (N, classes); H and W from 4 on, 32 in the paper.

    Args:
        layout: channels and strides of the units of the three stages.
        shortcut: builds the shortcut of a unit.
        classes: the number of logits.
        in_channels: the channels of an image.
    """

    def __init__(
        self, layout: Layout, shortcut: Shortcut, *, classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        width = layout[0][0].inputs
        self.conv1 = Convolution(in_channels, width)
        self.bn1 = BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3 = (stage(BasicUnit, specs, shortcut) for specs in layout)
        self.fc = nn.Linear(layout[-1][-1].outputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        y = self.through_units(y)  # (N, 64, H / 4, W / 4)
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


class HePreactResNet(ResidualNetwork):
    """The pre-activation network; arguments and shapes as in `HeResNet`."""

    def __init__(
        self, layout: Layout, shortcut: Shortcut, *, classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        width = layout[-1][-1].outputs
        self.conv1 = Convolution(in_channels, layout[0][0].inputs)
        self.layer1, self.layer2, self.layer3 = (
            stage(PreactivationUnit, specs, shortcut) for specs in layout
        )
        self.bn = BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.through_units(self.conv1(x))
        y = F.relu(self.bn(y))
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


SHORTCUTS: dict[str, Shortcut] = {"A": shortcut_a, "B": shortcut_b}
INITIAL = ("fan_out", "fan_in")
STRIDES: dict[str, LayoutRule] = {"first": stride_first, "last": stride_last}


def units_per_stage(depth: int) -> int:
    """The number n of units per stage in a network of depth 6n + 2."""
    n, rest = divmod(depth - 2, 6)
    if n < 1:
        raise InputError(f"a ResNet of depth {depth}: the depth is 6n + 2; the smallest is 8")
    if rest:
        raise InputError(
            f"a ResNet of depth {depth}: the depth is 6n + 2; the nearest are {6 * n + 2} and {6 * n + 8}"
        )
    return n


def _layout(
    depth: int, shortcut: str, stride: str, initial: str, widths: Sequence[int], **sizes: int
) -> Layout:
    """The layout of a network; an `InputError` lists all invalid options."""
    n = units_per_stage(depth)
    mistakes = size_mistakes(widths, 3, **sizes)
    if not mistakes and shortcut == "A" and list(widths) != sorted(widths):
        mistakes.append(f"widths {list(widths)}: shortcut A cannot drop channels; use shortcut B")
    if shortcut not in SHORTCUTS:
        mistakes.append(f"unknown shortcut '{shortcut}': use A (subsample and pad) or B (1x1 convolution)")
    if stride not in STRIDES:
        mistakes.append(f"unknown stride '{stride}': use first or last (the unit of a stage that strides)")
    if initial not in INITIAL:
        mistakes.append(
            f"unknown initial weights '{initial}': use fan_out (by a convolution's outputs) or fan_in"
        )
    if mistakes:
        raise InputError(*mistakes)
    return STRIDES[stride](widths, (n, n, n))


Network = TypeVar("Network", bound=ResidualNetwork)


def _prepared(network: Network, initial: str, zero_init: bool, gradient: Any) -> Network:
    """The network with its initial weights and its gradient method."""
    if initial == "fan_in":
        fan_in_weights(network)
    if zero_init:
        zero_branches(network)
    network.set_gradient(gradient)
    return network


@by_depth("he_resnet", LISTED, summary="He et al. 2016: CIFAR ResNet-{depth}", check=units_per_stage)
def he_resnet(
    depth: int,
    *,
    classes: int = 10,
    in_channels: int = 3,
    shortcut: Literal["A", "B"] = "A",
    stride: Literal["first", "last"] = "first",
    widths: Sequence[int] = (16, 32, 64),
    initial: Literal["fan_out", "fan_in"] = "fan_out",
    zero_init: bool = False,
    gradient: Any = "stored",
) -> HeResNet:
    """He et al.'s ResNet for CIFAR of any depth 6n + 2.

    Args:
        depth: the number of layers with weights.
        classes: the number of logits.
        in_channels: the channels of an image.
        shortcut: A pads with zeros and has no parameters (the paper's choice); B is a 1x1 convolution.
        stride: which unit strides and widens: the first of a stage (the paper) or the last of the one before.
        widths: the channels of the three stages.
        initial: fan_out: weights of a convolution have variance 2 / (9 outputs); fan_in: 2 / (9 inputs), and
            those of the linear layer 2 / inputs, as in akamaster/pytorch_resnet_cifar10.
        zero_init: start every residual branch from F = 0.
        gradient: stored, or checkpointed (`resode.gradients.Checkpointed`).

    Raises:
        InputError: an invalid depth, shortcut, stride, initial, width or size; all are listed.
    """
    layout = _layout(depth, shortcut, stride, initial, widths, classes=classes, in_channels=in_channels)
    network = HeResNet(layout, SHORTCUTS[shortcut], classes=classes, in_channels=in_channels)
    return _prepared(network, initial, zero_init, gradient)


@by_depth(
    "he_preact_resnet",
    LISTED,
    summary="He et al. 2016b: CIFAR pre-activation ResNet-{depth}",
    check=units_per_stage,
)
def he_preact_resnet(
    depth: int,
    *,
    classes: int = 10,
    in_channels: int = 3,
    shortcut: Literal["A", "B"] = "A",
    stride: Literal["first", "last"] = "first",
    widths: Sequence[int] = (16, 32, 64),
    initial: Literal["fan_out", "fan_in"] = "fan_out",
    zero_init: bool = False,
    gradient: Any = "stored",
) -> HePreactResNet:
    """The pre-activation ResNet for CIFAR of any depth 6n + 2; arguments and errors as in `he_resnet`."""
    layout = _layout(depth, shortcut, stride, initial, widths, classes=classes, in_channels=in_channels)
    network = HePreactResNet(layout, SHORTCUTS[shortcut], classes=classes, in_channels=in_channels)
    return _prepared(network, initial, zero_init, gradient)
