"""The foreign networks in their own layout, from which checkpoints are synthesised."""

import torch
import torch.nn.functional as F
from torch import nn


def _pad(y, channels):
    return F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, channels, channels))


class AkamasterBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.grows = inputs != outputs

    def forward(self, y):
        f = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y)))))
        return F.relu(f + (_pad(y, y.shape[1] // 2) if self.grows else y))


class Akamaster(nn.Module):
    def __init__(self, depth, classes=10):
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            blocks = [AkamasterBlock(inputs, outputs, 1 if stage == 1 else 2)]
            blocks += [AkamasterBlock(outputs, outputs, 1) for _ in range(n - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(F.avg_pool2d(y, y.shape[3]).flatten(1))


def _convolutions(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class FattoribStage(nn.Module):
    def __init__(self, inputs, outputs, n):
        super().__init__()
        self.conv_block = _convolutions(inputs, inputs)
        self.residual_block = nn.ModuleList([_convolutions(inputs, inputs) for _ in range(n - 1)])
        self.bn = nn.BatchNorm2d(outputs)
        self.final_block = _convolutions(inputs, outputs, stride=outputs // inputs)
        self.grows = inputs != outputs

    def forward(self, y):
        for block in self.residual_block:
            y = F.relu(y + block(y))
        return F.relu(self.final_block(y) + (_pad(y, y.shape[1] // 2) if self.grows else y))


class Fattorib(nn.Module):
    def __init__(self, depth, classes=10):
        super().__init__()
        n = (depth - 2) // 6
        self.first_layer = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.first_block = FattoribStage(16, 32, n)
        self.second_block = FattoribStage(32, 64, n)
        self.third_block = FattoribStage(64, 64, n)
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        y = F.relu(self.bn(self.first_layer(x)))
        y = self.third_block(self.second_block(self.first_block(y)))
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


class KuangliuBlock(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        kernels = ((1, 1, 0), (3, stride, 1), (1, 1, 0)) if bottleneck else ((3, stride, 1), (3, 1, 1))
        widths = (inputs, width, width, outputs) if bottleneck else (inputs, width, width)
        self.convolutions = len(kernels)
        for i, (kernel, step, padding) in enumerate(kernels):
            convolution = nn.Conv2d(widths[i], widths[i + 1], kernel, step, padding, bias=False)
            setattr(self, f"conv{i + 1}", convolution)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, y):
        f = y
        for i in range(1, self.convolutions + 1):
            f = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(f))
            f = F.relu(f) if i < self.convolutions else f
        return F.relu(f + self.shortcut(y))


KUANGLIU = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class Kuangliu(nn.Module):
    def __init__(self, depth, classes=10):
        super().__init__()
        bottleneck, inputs = depth >= 50, 64
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        for stage, count in enumerate(KUANGLIU[depth], start=1):
            width, blocks = 32 * 2**stage, []
            for i in range(count):
                blocks.append(KuangliuBlock(inputs, width, 2 if i == 0 and stage > 1 else 1, bottleneck))
                inputs = 4 * width if bottleneck else width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        return self.linear(F.avg_pool2d(y, 4).flatten(1))


def synthesise(network):
    """Fill a network in float64; norms shrink with depth, so that logits stay of the order of one."""
    generator = torch.Generator().manual_seed(0)
    network = network.double().eval()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            scale = (2 / tensor[0].numel()) ** 0.5
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        elif tensor.is_floating_point():
            numbers = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("running_var", "linear.bias", "fc.bias")):
                tensor.copy_(0.5 + numbers)
            elif name.endswith("weight"):
                tensor.copy_((0.5 + numbers) * norms**-0.25)
            else:
                tensor.copy_((numbers - 0.5) * norms**-0.25)
        else:
            tensor.fill_(7)
    return network
