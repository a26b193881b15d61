"""What `resode bench` tells beside what a run records: are they the same rate?

A round is `resode bench RECIPE`, then `resode train RECIPE` for two epochs, then the bench again. Of the run
counts the second epoch in metrics.csv (in the first the network is compiled); its rate is compared with the
mean of the two benches around it, since a machine that is shared is not equally fast at all times.

    python benchmarks/agreement.py [--recipes short/resnet20,he2016/resnet56] [--data cifar10]
                                   [--precision bf16] [--compile on] [--rounds 3] [--seconds 20] [--json]
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from resode.training.records.environment import environment


def bench(recipe: str, options: argparse.Namespace) -> float:
    """The training rate that `resode bench` tells, in images a second."""
    told = _resode(
        "bench", recipe, "--data", options.data, "--precision", options.precision,
        "--compile", options.compile, "--seconds", f"{options.seconds:g}", "--json",
    )  # fmt: skip
    rate: float = json.loads(told)["train_images_per_second"]
    return rate


def run(recipe: str, options: argparse.Namespace) -> float:
    """The rate of the second epoch of a run, as metrics.csv has it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        _resode(
            "train", recipe, "--data", options.data, "--set", f"precision={options.precision}",
            "--set", f"compile={'true' if options.compile == 'on' else 'false'}", "--set", "epochs=2",
            "--set", "evaluation.test=false", "--out", str(out),
        )  # fmt: skip
        with (out / "metrics.csv").open(encoding="utf-8") as file:
            return float(list(csv.DictReader(file))[1]["images_per_second"])


def measure(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of a recipe."""
    told, recorded = [bench(recipe, options)], []
    for _ in range(options.rounds):
        recorded.append(run(recipe, options))
        told.append(bench(recipe, options))
    around = [(a + b) / 2 for a, b in pairwise(told)]
    ratios = sorted(a / b for a, b in zip(around, recorded, strict=True))
    return {
        "recipe": recipe,
        "bench": [round(rate, 1) for rate in told],
        "metrics": recorded,
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
    }


def _resode(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "resode", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def main() -> None:
    """Measure and say."""
    parser = argparse.ArgumentParser(description="What resode bench tells beside what a run records.")
    parser.add_argument("--recipes", default="short/resnet20")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--compile", default="on", choices=["on", "off"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(recipe, options) for recipe in options.recipes.split(",")]
    if options.json:
        command = (
            f"python benchmarks/agreement.py --recipes {options.recipes} --data {options.data} --precision "
            f"{options.precision} --compile {options.compile} --rounds {options.rounds} --seconds "
            f"{options.seconds:g} --json"
        )
        machine = environment(torch.device("cpu"))
        print(json.dumps({"command": command, "rows": rows, "environment": machine}, indent=2))
        return
    for row in rows:
        print(f"{row['recipe']}: bench / metrics.csv {row['ratio']} ({row['lowest']} to {row['highest']})")
        print(f"  bench        {', '.join(f'{rate:,.0f}' for rate in row['bench'])} images/s")
        print(f"  metrics.csv  {', '.join(f'{rate:,.0f}' for rate in row['metrics'])} images/s")


if __name__ == "__main__":
    main()
