"""What each step from the plain loop to the engine gives, for several networks, in turns within one process.

    plain            fp32, NCHW, eager, one fixed batch, SGD over each parameter, `.item()` each step
    channels-last    convolutions on channels-last memory
    fused            one fused optimizer step, no `.item()`
    engine           resode's loop: data, crops and flips, bookkeeping (on a GPU a CUDA graph)
    engine, bf16     the same under autocast
    engine, compiled the same by torch.compile (--compile), in the faster precision

A round times each form for a while; the figure of a form is the median of its rate over that of the plain
loop in the same round.

    python benchmarks/training.py [--recipes short/resnet20,he2016/resnet56] [--rounds 5] [--seconds 4]
                                  [--compile] [--device auto] [--json]
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from resode.training import Experiment
from resode.training.loop.step import Position, Trainer
from resode.training.process.device import choose_device
from resode.training.records.run import environment
from resode.training.setup.preparation import prepare

RECIPES = "short/resnet20,he2016/resnet56,modern/resnet18,dynamicblocks/rk4"


def loop(module: nn.Module, layout: torch.memory_format, fused: bool) -> Callable[[torch.Tensor, Any], None]:
    """A step of a loop of one's own on a copy of the network."""
    network = copy.deepcopy(module).train()
    network.to(memory_format=layout)  # type: ignore[call-overload]  # unknown to torch's types
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, fused=fused)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        loss = F.cross_entropy(network(inputs.contiguous(memory_format=layout)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not fused:
            loss.item()

    return step


def engine(recipe: str, **keys: Any) -> Trainer:
    """The engine on a recipe."""
    return Trainer(prepare(Experiment.from_recipe(recipe, keys)))


def measure(recipe: str, rounds: int, seconds: float, compile_: bool, device: str) -> dict[str, Any]:
    """The rates of all forms."""
    trainers = {
        "engine": engine(recipe, precision="fp32", compile=False, device=device),
        "engine, bf16": engine(recipe, precision="bf16", compile=False, device=device),
    }
    setup = trainers["engine"].setup
    batch = setup.training.batch(0, 0)
    forms: dict[str, Callable[[], object]] = {}
    for name, layout, fused in (
        ("plain", torch.contiguous_format, False),
        ("channels-last", torch.channels_last, False),
        ("fused", torch.channels_last, True),
    ):
        step = loop(setup.module, layout, fused)
        forms[name] = partial(step, batch.inputs, batch.targets)

    def engine_step(trainer: Trainer) -> None:
        if trainer.position.step >= trainer.steps - 1:
            trainer.position = Position(epoch=trainer.position.epoch + 1)
        trainer.step()

    forms |= {name: partial(engine_step, trainer) for name, trainer in trainers.items()}
    if compile_:
        for name in trainers:  # to warm up
            seconds_of(forms[name], 0)
        fastest = min(trainers, key=lambda name: seconds_of(forms[name], 0))
        precision = trainers[fastest].setup.experiment.precision
        compiled = engine(recipe, precision=precision, compile=True, device=device)
        forms[f"engine, {precision}, compiled"] = lambda: engine_step(compiled)
    rates: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, do in forms.items():
            time_ = seconds_of(do, seconds if number else 0)
            if number:  # the first round warms up, and records
                rates[name].append(len(batch.targets) / time_)
    ratios = {
        name: [rate / plain for rate, plain in zip(each, rates["plain"], strict=True)]
        for name, each in rates.items()
    }
    return {
        "recipe": recipe,
        "model": setup.experiment.model.name if setup.experiment.model else None,
        "batch_size": len(batch.targets),
        "rounds": rounds,
        "forms": {
            name: {
                "images_per_second": round(statistics.median(rates[name]), 1),
                "ratio": round(statistics.median(ratios[name]), 3),
                "lowest": round(min(ratios[name]), 3),
                "highest": round(max(ratios[name]), 3),
            }
            for name in forms
        },
    }


def seconds_of(do: Callable[[], object], seconds: float) -> float:
    """Of one call, on average over at least two; over five where no time is given."""
    wait()
    calls, begin = 0, time.perf_counter()
    while calls < (2 if seconds else 5) or time.perf_counter() - begin < seconds:
        do()
        calls += 1
    wait()
    return (time.perf_counter() - begin) / calls


def wait() -> None:
    """Until a GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for recipe in arguments.recipes.split(","):
        row = measure(recipe, arguments.rounds, arguments.seconds, arguments.compile, arguments.device)
        rows.append(row)
        print(f"{recipe} ({row['model']}), batch {row['batch_size']}", file=sys.stderr)
        for name, found in row["forms"].items():
            print(
                f"  {name:<24}{found['images_per_second']:>9,.1f} images/s{found['ratio']:>7.2f}  "
                f"({found['lowest']:.2f} to {found['highest']:.2f})",
                file=sys.stderr,
            )
    if arguments.json:
        command = " ".join(["python", "benchmarks/training.py", *sys.argv[1:]])
        here = environment(choose_device(arguments.device))
        print(json.dumps({"command": command, "networks": rows, "environment": here}, indent=2))


if __name__ == "__main__":
    main()
