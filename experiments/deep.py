"""ResNet-1202 trained on CIFAR-10 within a memory budget: the first iterations and their cost.

    python experiments/deep.py [--budget 600MB] [--batch 32] [--iterations 200] [--out runs/deep] [--record]

The recipe is `he2016/resnet1202` (19,421,274 parameters) with another batch size and residual branches that
start at zero (`model.zero_init`): with the paper's initial weights, the loss in the first hundred iterations
at batch 32 reaches 140. It is an ordinary run (`resode train --resume --out DIR` continues it), stopped after
the given number of iterations. Loss and time of every iteration go to DIR-losses.csv; an interrupted run is
resumed. `--record` writes results/resnet1202.json.
"""

import argparse
import csv
import json
import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

from resode import atomic
from resode.errors import Stopped
from resode.models import create
from resode.training import Callback, Experiment, train
from resode.training.records.run import Run
from resode.training.setup.memory import StepMemory
from resode.training.setup.preparation import Setup

HERE = Path(__file__).resolve().parent.parent


class Watching(Callback):
    """Write the loss of each iteration, and stop after the last one."""

    def __init__(self, file: Path, iterations: int) -> None:
        self.file, self.iterations, self.steps = file, iterations, 0

    def message(self, text: str) -> None:
        print(text, flush=True)

    def started(self, setup: Setup, epoch: int) -> None:
        self.steps = setup.training.steps
        self.fixed = sum(setup.memory.fixed_bytes(setup.module))
        self.began = time.perf_counter()

    def stepped(self, epoch: int, step: int, loss: float | None) -> None:
        now = time.perf_counter()
        number = epoch * self.steps + step + 1
        with self.file.open("a", encoding="utf-8") as file:
            csv.writer(file).writerow((number, loss, round(now - self.began, 3)))
        self.began = now
        if number >= self.iterations:
            os.kill(os.getpid(), signal.SIGINT)


def losses(file: Path) -> list[tuple[int, float, float]]:
    """Iteration, loss and seconds; the later ones where an iteration ran twice."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8") as lines:
        rows = {int(n): (int(n), float(loss), float(seconds)) for n, loss, seconds in csv.reader(lines)}
    return [rows[n] for n in sorted(rows)]


def record(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The record of the run."""
    experiment = Run(out).read_experiment()
    assert experiment.model is not None
    network = create(experiment.model.name, **experiment.model.options)
    memory = StepMemory.of(experiment, (3, 32, 32))
    choice = memory.describe(network, memory.choose(network))
    rows = losses(out.parent / f"{out.name}-losses.csv")
    values = [loss for _, loss, _ in rows]
    tenth = max(1, len(values) // 10)
    return {
        "command": f"python experiments/deep.py --budget {options.budget} --batch {options.batch} "
        f"--iterations {options.iterations}",
        "iterations": len(values),
        "loss_first_tenth": round(statistics.mean(values[:tenth]), 4),
        "loss_last_tenth": round(statistics.mean(values[-tenth:]), 4),
        "losses": [round(value, 4) for value in values],
        "seconds_an_iteration": round(statistics.median(seconds for *_, seconds in rows), 3),
        "memory": choice,
        "environment": json.loads((out / "environment.json").read_text(encoding="utf-8")),
    }


def main() -> None:
    """Run or resume, then record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", default="600MB")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/deep"))
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    changes = {
        "batch_size": options.batch,
        "memory_budget": options.budget,
        "data.validation": 0,
        "model.zero_init": True,
    }
    experiment = Experiment.from_recipe("he2016/resnet1202", changes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    watching = Watching(options.out.parent / f"{options.out.name}-losses.csv", options.iterations)
    resume = (options.out / "experiment.yaml").is_file()
    if len(losses(watching.file)) < options.iterations:
        try:
            train(experiment, out=options.out, resume=resume, callbacks=[watching], progress=False)
        except Stopped as stopped:
            print(stopped)
    found = record(options.out, options)
    if options.record:
        atomic.write_json(HERE / "results" / "resnet1202.json", found)
    print(json.dumps({key: value for key, value in found.items() if key != "losses"}, indent=2))


if __name__ == "__main__":
    main()
