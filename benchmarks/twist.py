"""A training step of a twisted ResNet-20 against the plain one: time and memory, form by form.

All 19 convolutions are twisted (tie conformal). "plain generators" is the form "generated" in torch's
operations, without our kernel. Networks are stepped in turn in one process, three steps
each, of which the first, which finds the memory as another left it, is not counted; the median of the ratios
to the plain steps of the same round is printed. Memory is what autograd keeps between forward and backward
pass, with parameters, gradients and momentum, and the peak resident size of a process of its own that makes
three steps. Goals: at least 0.5 of the plain speed, at most 1.5 times its memory.

    python benchmarks/twist.py [--batch 128] [--rounds 8] [--precision bf16] [--compile] [--json]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

import resode
from resode import cost, memory
from resode.operators import generated
from resode.operators.twist import FORMS
from resode.training.process.allocator import keeping_freed_memory
from resode.training.process.device import place
from resode.training.records.environment import environment
from resode.training.setup.execution import compiled

PLAIN_GENERATORS = "plain generators"
ARMS = ("plain", *(form for form in FORMS if form != "auto"), PLAIN_GENERATORS)
IMAGE = (3, 32, 32)


def network(arm: str) -> nn.Module:
    """ResNet-20, plain or twisted."""
    torch.manual_seed(0)
    plain = resode.create("he_resnet20")
    form = "generated" if arm == PLAIN_GENERATORS else arm
    made = plain if arm == "plain" else resode.twist(plain, form=form)
    return place(made.train(), torch.device("cpu"))


def fits_nothing(*_: object) -> bool:
    """In the place of `resode.operators.generated.fits`; a function, so that torch.compile can trace it."""
    return False


def without_kernel(arm: str) -> AbstractContextManager[object]:
    """Where our kernel of the generators fits nothing, if the arm is to do without it."""
    if arm != PLAIN_GENERATORS:
        return nullcontext()
    return mock.patch.object(generated, "fits", fits_nothing)


@dataclass(frozen=True)
class Form:
    """How a step computes."""

    batch: int
    half: bool
    compile: bool

    def __str__(self) -> str:
        return f"{'bf16' if self.half else 'fp32'}{', compiled' if self.compile else ''}"


class Step:
    """A step of a network on a fixed batch: forward, backward, update."""

    def __init__(self, arm: str, form: Form) -> None:
        self.arm, module = arm, network(arm)
        self.forward = compiled(module) if form.compile else module
        self.half = form.half
        self.optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, fused=True)
        self.x = torch.randn(form.batch, *IMAGE).contiguous(memory_format=torch.channels_last)
        self.labels = torch.arange(form.batch) % 10

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with without_kernel(self.arm), torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits = self.forward(self.x)
        F.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()


def seconds(form: Form, rounds: int) -> dict[str, list[float]]:
    """Seconds of each counted step."""
    ready = {arm: Step(arm, form) for arm in ARMS}
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm, step in ready.items():
            step()
            for _ in range(2):
                begin = time.perf_counter()
                step()
                times[arm].append(time.perf_counter() - begin)
    return times


def kept_bytes(arm: str, form: Form) -> int:
    """Activations that autograd keeps in the eager form, parameters, gradients and momentum."""
    module, dtype = network(arm), torch.bfloat16 if form.half else torch.float32
    with without_kernel(arm):
        activations = memory.profile(module, IMAGE, form.batch, dtype).kept()
    return activations + 3 * 4 * cost.parameters(module)


def peak_bytes(arm: str, form: Form) -> int:
    """Peak resident size of a process that makes three steps."""
    command = [sys.executable, __file__, "--peak-of", arm, "--batch", str(form.batch)]
    command += ["--precision", "bf16" if form.half else "fp32"] + ["--compile"] * form.compile
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(form: Form, rounds: int) -> dict[str, Any]:
    """All figures."""
    peaks = {arm: peak_bytes(arm, form) for arm in ARMS}
    times = seconds(form, rounds)
    medians = {arm: statistics.median(found) for arm, found in times.items()}
    arms = {}
    for arm in ARMS:
        ratios = [p / t for p, t in zip(times["plain"], times[arm], strict=True)]
        module = network(arm)
        arms[arm] = {
            "parameters": cost.parameters(module),
            "multiply_adds": cost.multiply_adds(module, IMAGE),
            "milliseconds": round(1e3 * medians[arm], 1),
            "speed": round(statistics.median(ratios), 3),
            "speed_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
            "kept_bytes": kept_bytes(arm, form),
            "peak_bytes": peaks[arm],
        }
    return {
        "batch_size": form.batch,
        "form": str(form),
        "command": " ".join(["python benchmarks/twist.py", *sys.argv[1:]]),
        "rounds": rounds,
        "arms": arms,
        "environment": environment(torch.device("cpu")),
    }


@keeping_freed_memory()  # as the engine does
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak-of", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    form = Form(arguments.batch, arguments.precision == "bf16", arguments.compile)
    if arguments.peak_of:
        step = Step(arguments.peak_of, form)
        for _ in range(3):
            step()
        print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    result = measure(form, arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    plain = result["arms"]["plain"]
    print(f"ResNet-20, batch {result['batch_size']}, {form}, {torch.get_num_threads()} threads")
    for arm, r in result["arms"].items():
        low, high = r["speed_quartiles"]
        print(
            f"{arm:<16} {r['milliseconds']:7.1f} ms a step, {r['speed']:.2f} of the plain speed "
            f"({low:.2f} to {high:.2f}), keeps {r['kept_bytes'] / 2**20:.0f} MiB "
            f"({r['kept_bytes'] / plain['kept_bytes']:.2f}), peak {r['peak_bytes'] / 2**20:.0f} MiB "
            f"({r['peak_bytes'] / plain['peak_bytes']:.2f})"
        )


if __name__ == "__main__":
    main()
