"""Residual units: the steps of a residual network (He et al. 2016, arXiv:1512.03385 and 1603.05027).

With convolutions K, norms b and the shortcut S:

    basic            y <- relu(S y + b2 K2 relu(b1 K1 y))
    bottleneck       y <- relu(S y + b3 K3 relu(b2 K2 relu(b1 K1 y))),  K1 and K3 of size 1x1
    pre-activation   y <- S y + K2 relu(b2 K1 relu(b1 y))
    activated        y <- S u + K2 relu(b2 K1 u),  u = relu(b1 y)

S is the identity if the shape does not change. Otherwise shortcut A takes every second pixel and adds
channels of zeros, as many before as after; shortcut B is a 1x1 convolution with its norm; shortcut
`preactivated` is K0 relu(b0 y) with K0 of size 1x1 (the code of Lu et al. 2018).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resode.fields.batch_norm import BatchNorm2d
from resode.models.layouts import UnitSpec

Shortcut = Callable[[UnitSpec], nn.Module]


class Convolution(nn.Conv2d):
    """A `kernel` x `kernel` convolution without bias that keeps the image size at stride 1.

    Initial weights are normal with variance 2 / (kernel^2 outputs): He et al. 2015 (arXiv:1502.01852),
    equation 14, the fan-out rule. It keeps the variance of the gradients from layer to layer; the variance of
    the activations is set by the norm that follows.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)

    def reset_parameters(self) -> None:
        """Draw new weights; does nothing on the meta device."""
        if not self.weight.is_meta:
            nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class Subsample(nn.Module):
    """Shortcut A: every `stride`-th pixel, padded with channels of zeros before and after.

    (N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride)); no parameters. If the number of new
    channels is odd, one more goes after than before.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, y: Tensor) -> Tensor:
        y = y[:, :, :: self.stride, :: self.stride]
        return F.pad(y, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, zeros=({self.before}, {self.after})"


def shortcut_a(spec: UnitSpec) -> nn.Module:
    """Shortcut A of a unit: the identity, or `Subsample`."""
    if spec.stride == 1 and spec.inputs == spec.outputs:
        return nn.Identity()
    return Subsample(spec.inputs, spec.outputs, spec.stride)


def shortcut_b(spec: UnitSpec) -> nn.Module:
    """Shortcut B of a unit: the identity, or a 1x1 convolution (`0`) and its norm (`1`)."""
    if spec.stride == 1 and spec.inputs == spec.outputs:
        return nn.Identity()
    return nn.Sequential(Convolution(spec.inputs, spec.outputs, 1, spec.stride), BatchNorm2d(spec.outputs))


def shortcut_preactivated(spec: UnitSpec) -> nn.Module:
    """The identity, or a norm (`0`), ReLU and a 1x1 convolution (`2`)."""
    if spec.stride == 1 and spec.inputs == spec.outputs:
        return nn.Identity()
    return nn.Sequential(
        BatchNorm2d(spec.inputs), nn.ReLU(), Convolution(spec.inputs, spec.outputs, 1, spec.stride)
    )


class BasicUnit(nn.Module):
    """y <- relu(S y + b2 K2 relu(b1 K1 y)), K of size 3x3 (arXiv:1512.03385, figure 2)."""

    def __init__(self, spec: UnitSpec, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = Convolution(spec.inputs, spec.middle, 3, spec.strides[0])
        self.bn1 = BatchNorm2d(spec.middle)
        self.conv2 = Convolution(spec.middle, spec.outputs, 3, spec.strides[1])
        self.bn2 = BatchNorm2d(spec.outputs)
        self.downsample = shortcut(spec)

    def forward(self, y: Tensor) -> Tensor:
        f = F.relu(self.bn1(self.conv1(y)))
        f = self.bn2(self.conv2(f))
        return F.relu(f + self.downsample(y))

    def zero_branch(self) -> None:
        """Start from F = 0: the last norm scales by zero (Goyal et al. 2017, arXiv:1706.02677)."""
        nn.init.zeros_(self.bn2.weight)


class BottleneckUnit(nn.Module):
    """y <- relu(S y + b3 K3 relu(b2 K2 relu(b1 K1 y))), K of size 1x1, 3x3, 1x1 (arXiv:1512.03385, figure 5).

    `strides` belong to K1 and K2; the published CIFAR networks stride in K2: (1, 1) or (1, 2).
    """

    def __init__(self, spec: UnitSpec, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = Convolution(spec.inputs, spec.middle, 1, spec.strides[0])
        self.bn1 = BatchNorm2d(spec.middle)
        self.conv2 = Convolution(spec.middle, spec.middle, 3, spec.strides[1])
        self.bn2 = BatchNorm2d(spec.middle)
        self.conv3 = Convolution(spec.middle, spec.outputs, 1)
        self.bn3 = BatchNorm2d(spec.outputs)
        self.downsample = shortcut(spec)

    def forward(self, y: Tensor) -> Tensor:
        f = F.relu(self.bn1(self.conv1(y)))
        f = F.relu(self.bn2(self.conv2(f)))
        f = self.bn3(self.conv3(f))
        return F.relu(f + self.downsample(y))

    def zero_branch(self) -> None:
        """Start from F = 0: the last norm scales by zero (Goyal et al. 2017, arXiv:1706.02677)."""
        nn.init.zeros_(self.bn3.weight)


class PreactivationUnit(nn.Module):
    """y <- S y + K2 relu(b2 K1 relu(b1 y)): nothing acts on the sum (arXiv:1603.05027, figure 4e)."""

    def __init__(self, spec: UnitSpec, shortcut: Shortcut) -> None:
        super().__init__()
        self.bn1 = BatchNorm2d(spec.inputs)
        self.conv1 = Convolution(spec.inputs, spec.middle, 3, spec.strides[0])
        self.bn2 = BatchNorm2d(spec.middle)
        self.conv2 = Convolution(spec.middle, spec.outputs, 3, spec.strides[1])
        self.downsample = shortcut(spec)

    def forward(self, y: Tensor) -> Tensor:
        return self.state_and_difference(y)[0]

    def state_and_difference(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """S y + f and f = K2 relu(b2 K1 relu(b1 y)): the state after the unit, less S y before it."""
        f: Tensor = self.conv1(F.relu(self.bn1(y)))
        f = self.conv2(F.relu(self.bn2(f)))
        return f + self.downsample(y), f

    def zero_branch(self) -> None:
        """Start from F = 0 by K2 = 0: with a norm scaled by zero the ReLU would pass no gradient."""
        nn.init.zeros_(self.conv2.weight)


class ActivatedUnit(PreactivationUnit):
    """u = relu(b1 y), y <- S u + K2 relu(b2 K1 u): the shortcut also takes the activated state.

    The unit of the published ResNets with a twist (liuyao12 2020); parameters as in `PreactivationUnit`.
    """

    def state_and_difference(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """S u + f and f = K2 relu(b2 K1 u): the state after the unit, less S u before it."""
        u = F.relu(self.bn1(y))
        f: Tensor = self.conv2(F.relu(self.bn2(self.conv1(u))))
        return f + self.downsample(u), f


Unit = BasicUnit | BottleneckUnit | PreactivationUnit


def stage(unit: type[Unit], specs: Sequence[UnitSpec], shortcut: Shortcut) -> nn.Sequential:
    """The units of one stage in sequence."""
    return nn.Sequential(*(unit(spec, shortcut) for spec in specs))


def zero_branches(network: nn.Module) -> None:
    """Set every residual branch of a network to F = 0."""
    for module in network.modules():
        if isinstance(module, Unit):
            module.zero_branch()


@torch.no_grad()
def fan_in_weights(network: nn.Module) -> None:
    """Draw all weights of convolutions and linear layers by the fan-in rule (arXiv:1502.01852, equation 10).

    They are normal with variance 2 / (numbers that enter a sum); biases stay as they are. It keeps the
    variance of the activations from layer to layer. Does nothing on the meta device.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight)
