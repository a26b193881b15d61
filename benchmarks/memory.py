"""Training steps of deep ResNets by every gradient method: bytes, seconds, and the error of the gradient.

He et al.'s ResNets of depth 20 to 1202, and reversible networks (symplectic coupling) of the same widths and
numbers of residual functions, each stepped in turn with plain backpropagation in the same process. Bytes are
counted: `saved` is the peak of what is alive for the backward pass, measured by following every tensor;
`total` adds parameters, gradients and momentum. The error is that of the whole gradient against plain
backpropagation in the same precision, |g - g'| / |g|.

    python benchmarks/memory.py [--depths 20,56,110,1202] [--families he,reversible] [--batch 128]
                                [--precision fp32] [--budgets 600e6,400e6] [--only-budgets] [--rounds 3]
                                [--keep] [--json]

With --keep the process keeps the memory that a step frees, as training does; it makes the plain step faster,
which takes the most.

A depth whose plain step does not fit into memory (ResNet-1202 at batch 128: 12 GB in fp32) can be measured
against it at a smaller --batch; bytes grow in proportion to the batch.
"""

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resode
from resode import cost, memory
from resode.models.budget import Budget, set_gradients
from resode.training.process.allocator import keeping_freed_memory
from resode.training.process.device import place
from resode.training.records.environment import environment

IMAGE = (3, 32, 32)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def he(depth: int) -> nn.Module:
    """He's ResNet."""
    return resode.create(f"he_resnet{depth}")


def reversible(depth: int) -> nn.Module:
    """A reversible network: couplings of two residual functions, so that layers and widths are as in He's."""
    units = (depth - 2) // 6
    field = {"name": "preactivation", "norm": "batch"}
    stages = [
        {"width": width, "field": field, "integrator": "coupling", "states": units, "gradient": "reversible"}
        for width in (16, 32, 64)
    ]
    return resode.create("dynamic", stages=stages, connector={"name": "unit", "shortcut": "A"})


def methods(
    network: nn.Module, batch: int, dtype: torch.dtype, budgets: list[int], only: bool
) -> dict[str, list[Any]]:
    """By name: the method of each kind with the fewest bytes, and what fits into budgets of a whole step."""
    budget = Budget(network, IMAGE, batch, dtype)
    kinds = budget.smallest_by_kind()[: 1 if only else None]  # stored is the first
    chosen = {choice.name: list(choice.methods) for choice in kinds}
    fixed = 3 * 4 * cost.parameters(network)
    for room in budgets:
        choice = budget.fastest(room - fixed)
        if choice is not None and choice.name != "stored":
            chosen[f"within {room / 1e6:.0f} MB"] = list(choice.methods)
    return chosen


def step(network: nn.Module, x: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    """Forward and backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = network(x)
    F.cross_entropy(logits.float(), labels).backward()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """Of all parameters, which lose them."""
    found = {}
    for name, p in network.named_parameters():
        assert p.grad is not None
        found[name], p.grad = p.grad, None
    return found


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """|g - g'| / |g| of the whole gradient."""
    squares = ((found[name] - g).double().square().sum() for name, g in expected.items())
    return float((sum(squares) / sum(g.double().square().sum() for g in expected.values())) ** 0.5)


def measure(
    family: str, depth: int, batch: int, precision: str, rounds: int, budgets: list[int], only: bool
) -> list[dict[str, Any]]:
    """A row for each method."""
    dtype = DTYPES[precision]
    torch.manual_seed(0)
    network = place({"he": he, "reversible": reversible}[family](depth), torch.device("cpu")).train()
    x = torch.randn(batch, *IMAGE).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    fixed = 3 * 4 * cost.parameters(network)
    rows: list[dict[str, Any]] = []
    expected: dict[str, Tensor] = {}
    chosen = methods(network, batch, dtype, budgets, only)
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for name, of_parts in chosen.items():
        set_gradients(network, of_parts)
        gc.collect()
        with memory.measured(network.parameters()) as live:
            step(network, x, labels, dtype)
        found = gradients(network)
        expected = expected or found
        predicted = memory.profile(network, IMAGE, batch, dtype).peak()
        rows.append(
            {
                "family": family, "depth": depth, "batch": batch, "precision": precision, "method": name,
                "parameters": cost.parameters(network), "saved_bytes": live.peak,
                "predicted_bytes": predicted, "total_bytes": live.peak + fixed,
                "gradient_error": error(found, expected),
            }
        )  # fmt: skip
    for number in range(rounds + 1):  # the first finds the memory as another method left it
        for name, of_parts in chosen.items():
            set_gradients(network, of_parts)
            begin = time.perf_counter()
            step(network, x, labels, dtype)
            if number or rounds == 0:
                times[name].append(time.perf_counter() - begin)
            gradients(network)
    plain = times["stored"]
    for row in rows:
        own = times[row["method"]]
        row["seconds"] = round(statistics.median(own), 4)
        row["relative_time"] = round(statistics.median(a / b for a, b in zip(own, plain, strict=True)), 3)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    head = f"{'network':<16}{'method':<26}{'saved':>11}{'predicted':>11}{'total':>11}{'time':>7}{'error':>10}"
    lines = [head]
    for r in rows:
        lines.append(
            f"{r['family'] + ' ' + str(r['depth']):<16}{r['method']:<26}"
            f"{r['saved_bytes'] / 1e6:>8,.1f} MB{r['predicted_bytes'] / 1e6:>8,.1f} MB"
            f"{r['total_bytes'] / 1e6:>8,.1f} MB{r['relative_time']:>7.2f}{r['gradient_error']:>10.1e}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", default="20,56,110")
    parser.add_argument("--families", default="he,reversible")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budgets", default="", help="bytes of the whole step to fit, e.g. 600e6,400e6")
    parser.add_argument("--only-budgets", action="store_true", help="and plain backpropagation")
    parser.add_argument("--keep", action="store_true", help="what is freed, as training processes do")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    budgets = [int(float(text)) for text in options.budgets.split(",") if text]
    rows = []
    with keeping_freed_memory() if options.keep else contextlib.nullcontext():
        for family in options.families.split(","):
            for depth in map(int, options.depths.split(",")):
                rows += measure(
                    family,
                    depth,
                    options.batch,
                    options.precision,
                    options.rounds,
                    budgets,
                    options.only_budgets,
                )
    command = " ".join(["python benchmarks/memory.py", *sys.argv[1:]])
    record = {"command": command, "rows": rows, "environment": environment(torch.device("cpu"))}
    print(json.dumps(record, indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
