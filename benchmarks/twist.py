"""A training step of a twisted ResNet-20 against the plain one: time and memory, form by form.

All 19 convolutions are twisted (tie conformal). Networks are stepped in turn in one process, three steps
each, of which the first, which finds the memory as another left it, is not counted; the ratio of the medians
is printed. Memory is what autograd keeps between forward and backward pass, with parameters, gradients and
momentum, and the peak resident size of a process of its own that makes three steps. Goals: at least 0.5 of
the plain speed, at most 1.5 times its memory.

    python benchmarks/twist.py [--batch 128] [--rounds 8] [--json]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resode
from resode import cost, memory
from resode.operators.twist import FORMS
from resode.training.precision import place
from resode.training.runs import environment

ARMS = ("plain", *(form for form in FORMS if form != "auto"))
IMAGE = (3, 32, 32)


def network(arm: str) -> nn.Module:
    """ResNet-20, plain or twisted."""
    torch.manual_seed(0)
    plain = resode.create("he_resnet20")
    made = plain if arm == "plain" else resode.twist(plain, form=arm)
    return place(made.train(), torch.device("cpu"))


def step(module: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> None:
    """Forward, backward, update."""
    optimiser.zero_grad()
    F.cross_entropy(module(x), labels).backward()
    optimiser.step()


def prepared(arm: str, batch: int) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    """A network, its optimiser and a fixed batch."""
    module = network(arm)
    optimiser = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
    x = torch.randn(batch, *IMAGE).contiguous(memory_format=torch.channels_last)
    return module, optimiser, x, torch.arange(batch) % 10


def seconds(batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each counted step."""
    ready = {arm: prepared(arm, batch) for arm in ARMS}
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm, arguments in ready.items():
            step(*arguments)
            for _ in range(2):
                begin = time.perf_counter()
                step(*arguments)
                times[arm].append(time.perf_counter() - begin)
    return times


def kept_bytes(arm: str, batch: int) -> int:
    """Activations that autograd keeps, parameters, gradients and momentum."""
    module = network(arm)
    return memory.profile(module, IMAGE, batch).kept() + 3 * 4 * cost.parameters(module)


def peak_bytes(arm: str, batch: int) -> int:
    """Peak resident size of a process that makes three steps."""
    command = [sys.executable, __file__, "--peak-of", arm, "--batch", str(batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(batch: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    peaks = {arm: peak_bytes(arm, batch) for arm in ARMS}
    times = seconds(batch, rounds)
    medians = {arm: statistics.median(found) for arm, found in times.items()}
    arms = {}
    for arm in ARMS:
        ratios = [p / t for p, t in zip(times["plain"], times[arm], strict=True)]
        module = network(arm)
        arms[arm] = {
            "parameters": cost.parameters(module),
            "multiply_adds": cost.multiply_adds(module, IMAGE),
            "milliseconds": round(1e3 * medians[arm], 1),
            "speed": round(medians["plain"] / medians[arm], 3),
            "speed_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
            "kept_bytes": kept_bytes(arm, batch),
            "peak_bytes": peaks[arm],
        }
    return {
        "batch_size": batch,
        "rounds": rounds,
        "arms": arms,
        "environment": environment(torch.device("cpu")),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak-of", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        ready = prepared(arguments.peak_of, arguments.batch)
        for _ in range(3):
            step(*ready)
        print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    result = measure(arguments.batch, arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    plain = result["arms"]["plain"]
    print(f"ResNet-20, batch {result['batch_size']}, fp32, {torch.get_num_threads()} threads")
    for arm, r in result["arms"].items():
        low, high = r["speed_quartiles"]
        print(
            f"{arm:<9} {r['milliseconds']:7.1f} ms a step, {r['speed']:.2f} of the plain speed "
            f"({low:.2f} to {high:.2f}), keeps {r['kept_bytes'] / 2**20:.0f} MiB "
            f"({r['kept_bytes'] / plain['kept_bytes']:.2f}), peak {r['peak_bytes'] / 2**20:.0f} MiB "
            f"({r['peak_bytes'] / plain['peak_bytes']:.2f})"
        )


if __name__ == "__main__":
    main()
