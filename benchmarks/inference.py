"""Inference of trained networks, in turns within one process.

    plain            fp32, NCHW, eager, under no_grad
    bf16             autocast on channels-last memory, eager
    compiled         the same, every BatchNorm folded into its convolution, by torch's compiler
    frozen           `resode.inference.Frozen` under bf16, as `resode evaluate --precision bf16
                     --compile on`: a program in bf16 where a processor multiplies it and the network fits

A round times each form for a while on batches that are already there; the figure of a form is the median of
its rate over that of the plain form in the same round.

    python benchmarks/inference.py [--models he_resnet20,he_resnet56,he_resnet110,cifar_resnet18]
                                   [--batch 128] [--rounds 9] [--seconds 2] [--json]
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import resode
from resode.inference import Frozen
from resode.training.records.environment import environment

LAST = torch.channels_last
MODELS = "he_resnet20,he_resnet56,he_resnet110,cifar_resnet18"


def forms(name: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name: images to logits."""
    torch.manual_seed(0)
    network = resode.create(name).eval()
    last, frozen = copy.deepcopy(network), Frozen(copy.deepcopy(network))
    last.to(memory_format=LAST)  # type: ignore[call-overload]  # unknown to torch's types
    folded = torch.compile(copy.deepcopy(last), options={"freezing": True}, dynamic=False)

    def half(
        module: Callable[[Tensor], Tensor], layout: torch.memory_format = LAST
    ) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                return module(x.contiguous(memory_format=layout))

        return forward

    return {
        "plain": torch.no_grad()(network),
        "bf16": half(last),
        "compiled": half(folded),
        "frozen": half(frozen, torch.contiguous_format),
    }


def rate(do: Callable[[Tensor], Tensor], x: Tensor, seconds: float) -> float:
    """Images a second."""
    begin, images = time.perf_counter(), 0
    while images == 0 or time.perf_counter() - begin < seconds:
        do(x)
        images += len(x)
    return images / (time.perf_counter() - begin)


def measure(name: str, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """The rates of all forms."""
    made, x = forms(name), torch.randn(batch, 3, 32, 32)
    for do in made.values():  # which compiles
        rate(do, x, 0.0)
        rate(do, x, 0.2)
    rates = [{form: rate(do, x, seconds) for form, do in made.items()} for _ in range(rounds)]
    found: dict[str, Any] = {}
    for form in made:
        ratios = sorted(each[form] / each["plain"] for each in rates)
        found[form] = {
            "images_per_second": round(statistics.median(each[form] for each in rates), 1),
            "ratio": round(statistics.median(ratios), 3),
            "lowest": round(ratios[0], 3),
            "highest": round(ratios[-1], 3),
        }
    return {"model": name, "batch_size": batch, "forms": found}


def main() -> None:
    """Measure and say."""
    parser = argparse.ArgumentParser(description="How fast trained networks infer.")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [
        measure(name, options.batch, options.rounds, options.seconds) for name in options.models.split(",")
    ]
    if options.json:
        command = (
            f"python benchmarks/inference.py --models {options.models} --batch {options.batch} "
            f"--rounds {options.rounds} --seconds {options.seconds:g} --json"
        )
        print(
            json.dumps(
                {"command": command, "rows": rows, "environment": environment(torch.device("cpu"))}, indent=2
            )
        )
        return
    for row in rows:
        print(f"{row['model']}, batch {row['batch_size']}")
        for form, found in row["forms"].items():
            spread = f"({found['lowest']:.2f} to {found['highest']:.2f})"
            print(
                f"  {form:<10} {found['images_per_second']:>8,.0f} images/s   {found['ratio']:>6.2f} {spread}"
            )


if __name__ == "__main__":
    main()
