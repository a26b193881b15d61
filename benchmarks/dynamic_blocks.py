"""A training step of the DynamicBlocks default network against its plain form, side by side.

The plain form is the network as one writes it first: fp32, eager, NCHW, every layer interpolated at every
stage of RK4, TvNorm by its formula, the transposed convolution as such. Both have the same 251,866
parameters, give the same logits (checked before measuring) and are stepped in turn in one process, three
steps each, of which the first, which finds the memory as the other form left it, is not counted. The ratio
of the medians is printed. Goal: at least 1.4 without compilation.

    python benchmarks/dynamic_blocks.py [--batch 125] [--rounds 8] [--json]
"""

import argparse
import itertools
import json
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resode
from resode.interop import from_dynamicblocks
from resode.training.process.device import place
from resode.training.records.environment import environment

WIDTHS, NODES = (16, 32, 64, 64), (0.0, 1.0, 2.0, 3.0, 4.0)


class PlainBias(nn.Module):
    """What its published form keeps of a layer of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))


class PlainLayer(nn.Module):
    """-(K^T relu(N(K y + b1)) + b2) at one control node, under the toolbox's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.conv, self.convt, self.normLayer = PlainBias(width), PlainBias(width), PlainBias(width)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.weight, self.conv.bias, self.convt.bias, self.normLayer.bias


class PlainBlock(nn.Module):
    """RK4 over the state nodes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.controlLayers = nn.ModuleList(PlainLayer(width) for _ in NODES)

    def f(self, t: float, y: Tensor) -> Tensor:
        left = min(int(t), len(NODES) - 2)
        w = t - left
        layers = self.controlLayers
        both = [layer.tensors() for layer in layers[left : left + 2] if isinstance(layer, PlainLayer)]
        pairs = zip(*both, strict=True)
        weight, b1, b2, bias = ((1 - w) * a + w * b for a, b in pairs)
        z = F.conv2d(y, weight, b1, padding=1)
        z = z / torch.sqrt(torch.sum(z**2, dim=1, keepdim=True) + 1e-4) + bias[:, None, None]
        return -F.conv_transpose2d(F.relu(z), weight, b2, padding=1)

    def forward(self, y: Tensor) -> Tensor:
        for t, end in itertools.pairwise(NODES):
            h = end - t
            k1 = self.f(t, y)
            k2 = self.f(t + h / 2, y + h / 2 * k1)
            k3 = self.f(t + h / 2, y + h / 2 * k2)
            k4 = self.f(end, y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y


class PlainJoint(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.normLayer = nn.BatchNorm2d(outputs, eps=1e-4)

    def forward(self, y: Tensor) -> Tensor:
        return F.relu(self.normLayer(self.conv(y)))


class PlainNet(nn.Module):
    """The default network, under the toolbox's names."""

    def __init__(self) -> None:
        super().__init__()
        self.open = PlainJoint(3, WIDTHS[0], 3)
        self.dynamicBlocks = nn.ModuleList(PlainBlock(w) for w in WIDTHS[:-1])
        self.connectors = nn.ModuleList(PlainJoint(a, b, 1) for a, b in itertools.pairwise(WIDTHS))
        self.linear = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.open(x)
        for number, (block, connector) in enumerate(zip(self.dynamicBlocks, self.connectors, strict=True)):
            y = connector(block(y))
            y = F.avg_pool2d(y, 2) if number < len(WIDTHS) - 2 else y
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits


def stepper(network: nn.Module, x: Tensor, labels: Tensor) -> Any:
    """One SGD step of a network."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=4e-4)

    def step() -> float:
        begin = time.perf_counter()
        loss = F.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - begin

    return step


def measure(batch: int, rounds: int) -> dict[str, Any]:
    """Median seconds of a step of both forms, over `rounds` rounds after one for warming up."""
    torch.manual_seed(0)
    reference = PlainNet()
    network = from_dynamicblocks(
        reference.state_dict(), scheme="rk4", layer="parabolic", states=NODES, controls=NODES, widths=WIDTHS
    )
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    difference = (reference.eval()(x) - network.eval()(x)).abs().max().item()
    if difference > 1e-4:
        raise SystemExit(f"the two forms differ by {difference:.1e}: nothing is measured")
    device = torch.device("cpu")
    fast = stepper(place(network.train(), device), x.to(memory_format=torch.channels_last), labels)
    slow = stepper(reference.train(), x, labels)
    rows = [[[step() for _ in range(3)][1:] for step in (slow, fast)] for _ in range(rounds + 1)][1:]
    seconds = [statistics.median(itertools.chain(*column)) for column in zip(*rows, strict=True)]
    ratios = sorted(sum(plain) / sum(ours) for plain, ours in rows)
    return {
        "network": "dynamicblocks, RK4, 251,866 parameters",
        "batch_size": batch,
        "plain_images_per_second": batch / seconds[0],
        "resode_images_per_second": batch / seconds[1],
        "ratio": seconds[0] / seconds[1],
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "largest_difference_of_logits": difference,
        "rounds": rounds,
        "resode": resode.__version__,
        "environment": environment(device),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.batch, arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    low, high = result["ratio_quartiles"]
    print(
        f"{result['network']}, batch {result['batch_size']}, fp32, {torch.get_num_threads()} threads\n"
        f"plain form   {result['plain_images_per_second']:8.0f} images/s\n"
        f"resode       {result['resode_images_per_second']:8.0f} images/s\n"
        f"ratio        {result['ratio']:8.2f} (quartiles {low:.2f} to {high:.2f}, {result['rounds']} rounds)"
    )


if __name__ == "__main__":
    main()
